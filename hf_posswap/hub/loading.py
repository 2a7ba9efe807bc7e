"""The section of a card on loading the published model."""

from hf_posswap.hub.facts import CardFacts
from hf_posswap.hub.markdown import code_block


def model_loading(facts: CardFacts) -> str:
    """Return the section on loading a model."""
    name = _literal(facts.repo)
    parts = ["## Load it", code_block("pip install hf_posswap")]
    if facts.auto_class is None and facts.model is not None:
        model_class = facts.model.model_class
        code = f"from hf_posswap.modeling import {model_class}\n\nmodel = {model_class}.from_pretrained({name})"
        return "\n\n".join([*parts, code_block(code, "python")])
    imports = f"{facts.auto_class}, AutoTokenizer" if facts.has_tokenizer else facts.auto_class
    lines = [
        "import hf_posswap  # from here on transformers loads swapped models",
        f"from transformers import {imports}",
        "",
        f"model = {facts.auto_class}.from_pretrained({name})",
    ]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({name})"] if facts.has_tokenizer else []
    back = "" if facts.healed else "; `hf_posswap.restore(model)` gives the base model's own mechanism back"
    trusting = f"model = {facts.auto_class}.from_pretrained({name}, trust_remote_code=True)"
    return "\n\n".join([
        *parts,
        code_block("\n".join(lines), "python"),
        "Where `import hf_posswap` cannot be written, in a tool that only takes a model's name, let transformers do "
        "it, by a file of this repository with that one import in it:",
        code_block(trusting, "python"),
        "The package `hf_posswap` has to be installed either way. Without it transformers refuses the model, since it "
        f"would run without positions{back}.",
    ])  # fmt: skip


def adapter_loading(facts: CardFacts) -> str:
    """Return the section on loading an adapter."""
    arguments = _literal(facts.repo) if facts.base.has_name else f"{_literal(facts.repo)}, base=model"
    lines = ["from hf_posswap.training.adapters import load_adapter", "", f"model = load_adapter({arguments})"]
    parts = ["## Load it", code_block("pip install hf_posswap"), code_block("\n".join(lines), "python")]
    if not facts.base.has_name:
        parts.append("`model` is the base model, loaded by transformers; it is not on the Hub by the name above.")
    return "\n\n".join([
        *parts,
        "This loads the base model, swaps its positional mechanism and puts the adapter on. peft alone does not know "
        "this kind of adapter and refuses it, and so does `hf_posswap` on a base model with another scheme.",
    ])  # fmt: skip


def _literal(name: str) -> str:
    """Return a name as a Python string literal for a code block."""
    return '"' + "".join(c for c in name if c.isprintable() and c not in '"\\`') + '"'
