"""What schemes, architectures and attention share: positions, bias kinds, registries of names, declared options."""
