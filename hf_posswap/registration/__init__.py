"""What `import hf_posswap` registers with other packages, as soon as they are imported; it imports neither itself."""
