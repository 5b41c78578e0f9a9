"""Names of an adapter's tensors in the files of other tools: which module and which part of its adapter each one is.

diffusers writes `transformer.<module>.lora_A.weight`, peft `base_model.model.<module>.lora_A.weight`, tools for ComfyUI
`diffusion_model.<module>.lora_A.weight` or `lora_down.weight`, kohya's trainer `lora_unet_<module>.lora_down.weight`
with underscores in place of the module's dots.
"""

from collections.abc import Iterable
from dataclasses import dataclass

FACTORS = (".lora_A.weight", ".lora_B.weight")
MAGNITUDE = ".lora_magnitude_vector"
ALPHA = ".alpha"
PREFIX = "transformer."
PEFT_PREFIX = "base_model.model."
PREFIXES = (PREFIX, PEFT_PREFIX, "diffusion_model.")
KOHYA_PREFIX = "lora_unet_"
ENDS = {
    FACTORS[0]: FACTORS[0],
    FACTORS[1]: FACTORS[1],
    ".lora_A.default.weight": FACTORS[0],
    ".lora_B.default.weight": FACTORS[1],
    ".lora_down.weight": FACTORS[0],
    ".lora_up.weight": FACTORS[1],
    ".lora.down.weight": FACTORS[0],
    ".lora.up.weight": FACTORS[1],
    MAGNITUDE: MAGNITUDE,
    f"{MAGNITUDE}.weight": MAGNITUDE,
    f"{MAGNITUDE}.default.weight": MAGNITUDE,
    ALPHA: ALPHA,
}


@dataclass(frozen=True)
class AdapterNames:
    """What the names of a file were read as.

    Attributes:
        plain: `<module>.lora_A.weight`, `lora_B.weight`, `lora_magnitude_vector` or `alpha`, by the name in the file.
        unknown: names that are none of these, or of a module whose adapter lacks a part.
        prefixes: that stood before the modules; "" for none.
    """

    plain: dict[str, str]
    unknown: list[str]
    prefixes: set[str]


def read_names(names: Iterable[str], modules: Iterable[str] = ()) -> AdapterNames:
    """Reads the names of an adapter's file.

    Args:
        names: in the file.
        modules: of the model, by which kohya's names are told apart.

    Raises:
        ValueError: where two names are the same part of an adapter.
    """
    known = {module.replace(".", "_"): module for module in modules}
    plain: dict[str, str] = {}
    seen: set[str] = set()
    prefixes: set[str] = set()
    for name in sorted(names):
        end = max((end for end in ENDS if name.endswith(end)), key=len, default=None)
        module = _module(name.removesuffix(end), known, prefixes) if end else None
        if end is None or module is None:
            continue
        found = module + ENDS[end]
        if found in seen:
            raise ValueError(f"{name}: is there twice, as {found} under another name too")
        seen.add(found)
        plain[name] = found
    incomplete = _incomplete(seen)
    plain = {name: found for name, found in plain.items() if found not in incomplete}
    return AdapterNames(plain, sorted(set(names) - plain.keys()), prefixes)


def _module(stem: str, known: dict[str, str], prefixes: set[str]) -> str | None:
    if stem.startswith(KOHYA_PREFIX):
        prefixes.add(KOHYA_PREFIX)
        return known.get(stem.removeprefix(KOHYA_PREFIX))
    before = ""
    while prefix := next((prefix for prefix in PREFIXES if stem.startswith(prefix)), None):
        stem, before = stem.removeprefix(prefix), before + prefix
    prefixes.add(before)
    return stem


def _incomplete(names: Iterable[str]) -> set[str]:
    """The names that belong to no adapter with all its parts; alpha may be missing."""
    names = set(names)
    parts = (*FACTORS, MAGNITUDE) if any(name.endswith(MAGNITUDE) for name in names) else FACTORS
    modules = {name.removesuffix(part) for part in (*parts, ALPHA) for name in names if name.endswith(part)}
    whole = {module for module in modules if all(module + part in names for part in parts)}
    return names - {module + part for module in whole for part in (*parts, ALPHA)}
