"""The fixed texts of the published model."""

SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
SYSTEM_PROMPT_DROP = "You are a helpful assistant that generates images."

DEFAULT_NEGATIVE_PROMPT = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)
