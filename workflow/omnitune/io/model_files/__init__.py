"""Files of models, which strangers may have made: weights, configurations, tokenizers, repositories of the hub."""
