"""What a swap puts into a model, how it is put in and taken out, and the proof that it acts."""
