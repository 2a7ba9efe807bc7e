"""The modules of a swapped model, functions that install and remove them, and the proof of a swap."""
