"""Measures by models: cosines of features, times 100, and scores of models that were trained to give some."""

from omnitune.evaluation.measures.encoders import Classifier, Encoder
from omnitune.evaluation.measures.measure import Case


def clip(case: Case) -> float | None:
    """Likeness of image and instruction to a CLIP; none of edits, whose instructions describe no picture."""
    return _to_text(case, "clip")


def siglip(case: Case) -> float | None:
    """The same to a SigLIP."""
    return _to_text(case, "siglip")


def dino(case: Case) -> float | None:
    """Likeness of the image to the prompt's input images, on average over them."""
    encoder: Encoder | None = case.models.get("dino")
    if encoder is None or not case.prompt.input_images:
        return None
    image, *inputs = encoder.images([case.image, *case.inputs])
    return 100 * sum(float(image @ one) for one in inputs) / len(inputs)


def preference(case: Case) -> float | None:
    """Score of image and instruction by a CLIP that was trained on people's choices: its own logit; none of edits."""
    likeness, encoder = _to_text(case, "preference"), case.models.get("preference")
    return None if likeness is None or encoder is None else encoder.logit(likeness / 100)


def aesthetic(case: Case) -> float | None:
    """Score of the image alone by a classifier or a regression."""
    classifier: Classifier | None = case.models.get("aesthetic")
    return None if classifier is None else classifier.score(case.image)


def _to_text(case: Case, name: str) -> float | None:
    encoder: Encoder | None = case.models.get(name)
    if encoder is None or case.prompt.task_type == "edit":
        return None
    [image], [text] = encoder.images([case.image]), encoder.texts([case.prompt.instruction])
    return 100 * float(image @ text)
