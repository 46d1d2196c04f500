"""Modules and folders of Hugging Face libraries: the extra ``hf`` installs what this room needs."""
