"""The published layout: a `transformer` folder, or an adapter that diffusers, the published code and peft read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import split_state_dict_into_shards_factory
from peft import LoraConfig

from omnitune.conversion.adapters import Adapter
from omnitune.conversion.keys import empty_transformer
from omnitune.conversion.tensors import Digest, State, write_safetensors
from omnitune.io.files import write_json
from omnitune.models.lora.lora import METADATA_KEY, metadata_text
from omnitune.models.lora.names import PEFT_PREFIX, PREFIX
from omnitune.paths import ADAPTER_FILE, PEFT_CONFIG_FILE, PEFT_FILE
from omnitune.pretrained.transformer import INDEX

Digests = dict[str, Digest]


def write_transformer(folder: Path, state: State, config: Mapping[str, Any], max_shard_size: str) -> Digests:
    """Writes config.json and the weights, in files of at most `max_shard_size`, such as "10GB"; returns what was to be
    written."""
    empty_transformer(config).save_config(folder)
    name = INDEX.removesuffix(".safetensors.index.json")
    split = split_state_dict_into_shards_factory(
        state,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{name}{{suffix}}.safetensors",
        max_shard_size=max_shard_size,
    )
    digests: Digests = {}
    for file, names in split.filename_to_tensors.items():
        digests |= write_safetensors(folder / file, {name: state[name] for name in names})
    if split.is_sharded:
        places = dict(sorted(split.tensor_to_filename.items()))
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": places})
    return digests


def write_adapter(folder: Path, adapter: Adapter, targets: Sequence[str], facts: Mapping[str, str]) -> None:
    """Writes an adapter whose scale is 1, twice: under the published names, and under peft's with its config.

    Args:
        folder: where to.
        adapter: folded.
        targets: names of the modules that it adapts, or their endings.
        facts: texts for the headers.
    """
    [rank] = {adapter.rank(module) for module in adapter.modules}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), use_dora=adapter.use_dora).to_dict()
    config["target_modules"] = sorted(targets)  # a set has no order
    kept = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora")
    metadata = {METADATA_KEY: metadata_text({key: config[key] for key in kept}), **facts}
    tensors = adapter.tensors
    write_safetensors(folder / ADAPTER_FILE, {PREFIX + name: tensors[name] for name in tensors}, metadata)
    write_safetensors(folder / PEFT_FILE, {PEFT_PREFIX + name: tensors[name] for name in tensors}, facts)
    write_json(folder / PEFT_CONFIG_FILE, {**config, "inference_mode": True})
