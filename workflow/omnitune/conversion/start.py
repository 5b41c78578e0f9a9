"""The weights that a training starts from, as a conversion takes them."""

from pathlib import Path

from omnitune.conversion.keys import full_shapes, require_shapes
from omnitune.conversion.read import read_published
from omnitune.conversion.tensors import State
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.pretrained.weights import check_weights


def starting_state(transformer: Path | None, model: OmniGen2Transformer2DModel) -> State:
    """The tensors of a published `transformer` folder; ValueError where there is none or it does not fit the model."""
    if transformer is None:
        raise ValueError(
            "to merge an adapter, or to extract one, give the folder of the transformer that training started from."
        )
    check_weights([transformer])
    state = read_published(transformer)
    require_shapes(state, full_shapes(model), str(transformer), "It is not the transformer that training started from.")
    return state
