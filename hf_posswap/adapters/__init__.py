"""peft's adapters on swapped models: an adapter stores the scheme that it was trained with."""
