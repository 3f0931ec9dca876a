"""Names of the files that hold weights in the Hugging Face layout, safetensors first."""

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Of shards: the index of each format."""

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
"""Of PEFT, beside ``adapter_config.json``."""
