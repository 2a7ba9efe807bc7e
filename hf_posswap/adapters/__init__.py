"""peft's adapters on swapped models: an adapter carries the scheme that it was trained with."""
