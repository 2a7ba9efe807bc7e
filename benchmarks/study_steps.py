"""The steps of the study: each is one command of hf-posswap with a folder of its own."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

STUDIES = ("gpt2", "llama", "bert", "mpnet", "speed")
COMPARE, HEALED, POSITIONS, PASSKEY = "compare.json", "healing.json", "positions.json", "passkey.json"
RETRIEVAL, RULER, BIASES, BENCH = "retrieval.json", "ruler.json", "biases.json", "bench.json"

ALIBI, T5 = "alibi:trainable=true:per_layer=true", "t5:per_layer=true"
"""ALiBi and T5 in the forms that calibration can fit in every layer."""
EXTENSIONS = ("interpolate", "hierarchical")
"""The ways to make a position table longer that leave no two positions alike."""
NOPE_LAYERS = "none:layers=3+7+11+15+19+23+27:log_n=true"
HYBRIDS = f"rope,none,[{NOPE_LAYERS},rope:window=512],[{NOPE_LAYERS},rope],rope:window=512"
"""What SWAN and RNoPE mix, whole and in parts: every fourth layer without positions, the others within a window."""
TILED = "learned:tile:length=4096"
"""A position table repeated, which leaves texts that the stock model reads as they are."""
BOTH_WAYS = "alibi:form=two-slope:trainable=true:per_layer=true"
"""ALiBi for an encoder, which has to tell left from right."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        study: the part of the study it belongs to.
        folder: where its result goes, below the study's folder.
        result: the result file that is there when it is done.
        command: what follows `hf-posswap`, without the folder; `{study}` stands for the study's folder.
        cuda: whether it is run only where there is a GPU: elsewhere it takes days.
    """

    study: str
    folder: str
    result: str
    command: str
    cuda: bool = False

    def words(self, root: Path) -> list[str]:
        """Return the command's words for a study in the folder `root`."""
        words = [word.replace("{study}", str(root)) for word in shlex.split(self.command)]
        return [*words, "--output-dir", str(root / self.folder)]

    def is_done(self, root: Path) -> bool:
        """Return whether the result is there, complete, and made by this command."""
        path = root / self.folder / self.result
        if not path.is_file():
            return False
        result = json.loads(path.read_text(encoding="utf-8"))
        words = self.words(root)
        made_by = shlex.split(result["environment"]["command"])
        return bool(result.get("complete", True)) and made_by[-len(words) :] == words


THREE_SEEDS = (
    *("alibi", "kerple", "learned", "none", "relative_bias", "rope", "sandwich", "shaw", "sinusoidal", "t5"),
    *("transformer_xl", *(f"learned:{extend}:length=4096" for extend in EXTENSIONS), ALIBI, T5),
)
"""The schemes of demo:gpt2 that are healed with three seeds, at two rates."""
GATES = ("cable", "fox")
"""The newer schemes that are healed with three seeds; every other registered one is healed with one."""


def one_seed() -> list[str]:
    """Return every registered scheme that fits demo:gpt2 and is not among those of three seeds."""
    from hf_posswap import capabilities

    fitting = [cell.scheme for cell in capabilities() if cell.architecture == "gpt2" and cell.supported]
    return [scheme for scheme in fitting if scheme not in THREE_SEEDS + GATES]


def gpt2_steps() -> list[Step]:
    """Return the steps of demo:gpt2: every scheme at every stage, to 16 times the train length, rates and seeds."""
    positions = "--text demo:books --tokens 16384 --lengths 256,1024,4096"
    # compare keeps numbers, not models; some of a healed model's numbers need the model.
    recipe = (
        "--train-file demo:books/train --tokens 224000 --supervise logits --batch-size 16 --learning-rate 1e-3 "
        "--scheme-learning-rate 2e-2 --resume"
    )
    models = {"alibi": ALIBI, "t5": T5, "t5-from-zeros": f"{T5} --no-calibrate"}
    return [
        # What starts near the stock model heals best at the lower rate, what starts far from it at the higher one. The
        # schemes of one seed all start near.
        *(
            Step(
                "gpt2",
                folder,
                COMPARE,
                f"compare --model demo:gpt2 --schemes {','.join(schemes)} --text demo:books "
                "--lengths 128,256,512,1024,2048,4096 --tokens 8192 --calibrate --heal-tokens 224000 --batch-size 16 "
                f"--supervise logits --learning-rate {rate} {seeds} --train-file demo:books/train",
            )
            for folder, schemes, rate, seeds in (
                ("gpt2", THREE_SEEDS, "3e-4", "--seeds 3 --control"),
                ("gpt2-higher-rate", THREE_SEEDS, "1e-3", "--seeds 3 --control"),
                ("gpt2-gates", GATES, "3e-4", "--seeds 3"),
                ("gpt2-one-seed", one_seed(), "3e-4", "--seeds 1"),
            )
        ),
        Step(
            "gpt2",
            "gpt2-small-batches",
            COMPARE,
            "compare --model demo:gpt2 --schemes cable,relative_bias,t5:per_layer=true --text demo:books "
            "--lengths 256,4096 --tokens 8192 --calibrate --heal-tokens 224000 --batch-size 4 --supervise logits "
            "--learning-rate 1e-4 --seeds 3 --control --train-file demo:books/train",
        ),
        *(
            Step(
                "gpt2",
                f"gpt2-positions/{name}",
                POSITIONS,
                f"evaluate demo:gpt2 {scheme} --measure positions {positions}",
            )
            for name, scheme in {"stock": "", "none": "--pos-scheme none", "alibi": "--pos-scheme alibi"}.items()
        ),
        *(
            Step("gpt2", f"models/gpt2-{name}", HEALED, f"finetune --model demo:gpt2 --pos-scheme {scheme} {recipe}")
            for name, scheme in models.items()
        ),
        *(
            Step(
                "gpt2",
                f"gpt2-positions/{name}-healed",
                POSITIONS,
                f"evaluate {{study}}/models/gpt2-{name} --stage healed --measure loss,positions {positions}",
            )
            for name in models
        ),
        *(
            Step("gpt2", f"gpt2-bias/{name}", BIASES, f"bias {{study}}/models/gpt2-{name} --stage healed")
            for name in ("t5", "t5-from-zeros")
        ),
        # It has read hardly any digits: measured once, to say so.
        Step(
            "gpt2",
            "gpt2-passkey/stock",
            PASSKEY,
            "evaluate demo:gpt2 --text demo:books --measure passkey --lengths 128,256 --depths 0,0.5,1",
        ),
    ]


def llama_steps() -> list[Step]:
    """Return the steps of demo:llama: every stage on little text, pass keys, and much text where there is a GPU."""
    schemes = f"{T5},{ALIBI},none,rope:yarn:factor=4,rope,alibi,kerple:per_layer=true,relative_bias"
    texts = "--text demo:book/test --calibrate --train-file demo:books/train"
    passkey = "--text demo:book/test --measure passkey --depths 0,0.5,1"
    models = {
        "stock": "demo:llama",
        "rope-yarn": "demo:llama --pos-scheme rope:yarn:factor=4",
        "t5-calibrated": "{study}/models/llama-t5 --stage calibrated",
        "t5-healed": "{study}/models/llama-t5-healed --stage healed",
        "t5-500k": "{study}/models/llama-t5-500k --stage healed",
    }
    healing = (
        "--train-file demo:books/train --calibration-tokens 4096 --eval-file demo:book/test --eval-lengths 512,2048 "
        "--eval-tokens 4096 --resume"
    )
    ruler = "--text demo:book/test --measure ruler --lengths 512,2048 --trials 6 --dtype bfloat16"
    return [
        Step(
            "llama",
            "llama",
            COMPARE,
            f"compare --model demo:llama --schemes {schemes} {texts} --lengths 512,2048 --tokens 4096 "
            "--calibration-tokens 4096",
        ),
        Step(
            "llama",
            "llama-long",
            COMPARE,
            f"compare --model demo:llama --schemes {schemes} {texts} --lengths 512,2048,8192 --tokens 8192",
        ),
        Step(
            "llama",
            "llama-hybrid",
            COMPARE,
            f"compare --model demo:llama --schemes {HYBRIDS} --text demo:book/test --lengths 512,2048 --tokens 2048",
        ),
        Step(
            "llama",
            "models/llama-t5",
            "calibration.json",
            f"calibrate demo:llama --pos-scheme {T5} --text demo:book/train --overwrite",
        ),
        Step(
            "llama",
            "models/llama-t5-healed",
            HEALED,
            f"finetune --model demo:llama --pos-scheme {T5} --train-file demo:books/train --calibration-tokens 4096 "
            "--tokens 100000 --length 512 --batch-size 2 --supervise logits --learning-rate 3e-4 --resume",
        ),
        Step(
            "llama",
            "models/llama-t5-500k",
            HEALED,
            f"finetune --model demo:llama --pos-scheme {T5} --tokens 500000 --length 512,2048 --batch-size 1 "
            f"--supervise attention=0.1,logits,hidden=10 --learning-rate 3e-4 {healing}",
        ),
        Step(
            "llama",
            "models/llama-alibi",
            HEALED,
            f"finetune --model demo:llama --pos-scheme {ALIBI} --tokens 100000 --length 512 --batch-size 1 --supervise "
            f"logits,hidden=10 --learning-rate 5e-4 --scheme-learning-rate 1e-2 {healing}",
        ),
        *(
            Step("llama", f"llama-passkey/{name}", PASSKEY, f"evaluate {model} {passkey} --lengths 256,1024,2048")
            for name, model in models.items()
        ),
        *(
            Step("llama", f"llama-ruler/{name}", RULER, f"evaluate {models[name]} {ruler}")
            for name in ("stock", "rope-yarn", "t5-500k")
        ),
        # What two cores can do in an hour: what a first tenth of a million tokens gives back.
        Step(
            "llama",
            "llama-healed-little",
            COMPARE,
            f"compare --model demo:llama --schemes {T5},{ALIBI} {texts} --lengths 512,2048 --tokens 4096 "
            "--calibration-tokens 4096 --heal-tokens 100000 --heal-length 512 --batch-size 2 --supervise logits "
            "--learning-rate 3e-4 --scheme-learning-rate 1e-2 --control",
        ),
        Step(
            "llama",
            "llama-healed",
            COMPARE,
            f"compare --model demo:llama --schemes {ALIBI},{T5},none {texts} --lengths 512,2048,8192,32768 "
            "--tokens 32768 --heal-tokens 20000000 --heal-length 2048 --batch-size 4 --supervise logits "
            "--learning-rate 3e-4 --scheme-learning-rate 1e-2 --control",
            cuda=True,
        ),
    ]


def encoder_steps(study: str, layers: int, tokens: dict[str, int]) -> list[Step]:
    """Return the steps of an encoder, `demo:` and the study's name: healed by its embeddings, finding long documents.

    Args:
        study: the part of the study.
        layers: the model's layers: the hidden states of each weigh as much as the embedding.
        tokens: how many to heal each scheme on.
    """
    model = f"demo:{study}"
    healing = (
        "--length 256 --batch-size 4 --learning-rate 5e-4 --train-file demo:books/train --eval-file demo:books "
        "--eval-lengths 32,64,128,256 --resume"
    )
    retrieval = "--text demo:books --measure retrieval --lengths 128,256,512,1024,4096 --most-documents 40"
    names = {scheme: scheme.partition(":")[0] for scheme in tokens}
    return [
        Step(study, f"{study}-retrieval/stock", RETRIEVAL, f"evaluate {model} {retrieval}"),
        # Untrained, and as good as stock on short texts: what healing has to beat.
        Step(study, f"{study}-retrieval/tile", RETRIEVAL, f"evaluate {model} --pos-scheme {TILED} {retrieval}"),
        *(
            Step(
                study,
                f"{study}/{names[scheme]}",
                HEALED,
                f"finetune --model {model} --pos-scheme {scheme} --supervise logits,hidden={layers} "
                f"--tokens {tokens[scheme]} {healing}",
            )
            for scheme in tokens
        ),
        *(
            Step(
                study,
                f"{study}-retrieval/{name}",
                RETRIEVAL,
                f"evaluate {{study}}/{study}/{name} --stage healed {retrieval}",
            )
            for name in names.values()
        ),
    ]


def bert_steps() -> list[Step]:
    """Return the steps of demo:bert; ALiBi needs more tokens than RoPE to agree with the stock model as well."""
    return encoder_steps("bert", 6, {"rope": 2_000_000, BOTH_WAYS: 5_500_000})


def mpnet_steps() -> list[Step]:
    """Return the steps of demo:mpnet, which is five times as large as demo:bert and has T5's bias beside its table."""
    return encoder_steps("mpnet", 12, {"rope": 500_000, BOTH_WAYS: 500_000})


def speed_steps() -> list[Step]:
    """Return the steps of speed and memory, on the device that is there."""
    reading = "--lengths 512,2048 --layers 2 --dtypes float32,bfloat16"
    return [
        Step(
            "speed",
            f"speed/{shape}",
            BENCH,
            f"bench {shape} --schemes {schemes} {reading} --modes {modes}",
        )
        for shape, schemes, modes in (
            ("smollm2", "alibi,t5,rope,none,relative_bias,kerple,shaw,transformer_xl", "prefill,training,decode"),
            ("gpt2", "alibi,t5,rope,none,sinusoidal,learned", "prefill"),
        )
    ]


def all_steps() -> list[Step]:
    """Return the whole study in the order in which it runs."""
    return [*gpt2_steps(), *llama_steps(), *bert_steps(), *mpnet_steps(), *speed_steps()]
