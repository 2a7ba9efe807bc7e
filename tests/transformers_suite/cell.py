"""Run transformers' own tests on one family with one scheme: `cell.py TESTS FAMILY SCHEME OUTPUT [PATTERN]`.

SCHEME is what `hf_posswap.swap` takes, or "stock". PATTERN is a regular expression to be found in the names of tests.
OUTPUT becomes a JSON file: {test: {"failed": {part: traceback}, "skipped": reason, "seconds": …}}.
"""

import contextlib
import io
import json
import random
import re
import sys
import time
import traceback
import unittest
from pathlib import Path
from typing import Any

import upstream

LACKING = upstream.use(Path(sys.argv[1]))  # before the test files are imported, in the ranks of distributed tests too

import torch  # noqa: E402
import transformers  # noqa: E402
from families import FAMILIES, TOKEN_TYPES, Family  # noqa: E402
from transformers import set_seed  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from hf_posswap import swap  # noqa: E402
from hf_posswap.modeling import swapped_class  # noqa: E402

STOCK = "stock"


class ModelTester:
    """What transformers' mixins ask for a config and inputs."""

    batch_size, seq_length, is_training = 13, 7, True
    num_labels, num_choices, type_sequence_label_size = 3, 4, 2

    def __init__(self, parent: Any, family: Family, scheme: str) -> None:
        self.parent, self.family, self.scheme = parent, family, scheme
        for name in family.stock_options():
            setattr(self, name, getattr(family.stock_config(), name))
        as_tested = dict(zip(family.stock_classes, classes_of(family, scheme), strict=True))
        config_class = type(family.stock_config())
        self.base_model_class = as_tested[transformers.MODEL_MAPPING[config_class]]
        writer = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        self.causal_lm_class = as_tested[writer] if family.writes else None

    def get_config(self) -> Any:
        return self.family.stock_config() if self.scheme == STOCK else with_scheme(self.family, self.scheme)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        common = upstream.load("test_modeling_common")
        shape = [self.batch_size, self.seq_length]
        tokens = common.ids_tensor(shape, self.vocab_size)
        mask = torch.tril(torch.ones_like(tokens)) if self.family.writes else common.random_attention_mask(shape)
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if self.family.token_types:
            inputs["token_type_ids"] = common.ids_tensor(shape, TOKEN_TYPES)
        return self.get_config(), inputs


def with_scheme(family: Family, scheme: str) -> Any:
    """Return the config of a swapped model, as fresh as the stock config: no model was made from it."""
    config = swap(family.stock_classes[0](family.stock_config()), scheme, verify=False).config
    marks = {"pos_scheme": config.pos_scheme, "auto_map": config.auto_map}
    return type(config)(**family.stock_options(), **marks)


def classes_of(family: Family, scheme: str) -> tuple[Any, ...]:
    """Return the model classes under test, the base model first."""
    return family.stock_classes if scheme == STOCK else tuple(map(swapped_class, family.stock_classes))


def name_swapped_classes(family: Family) -> None:
    """Enter the names of swapped classes where the tests look up which inputs a class by that name wants.

    The tables serve the Auto classes too, which ask them by the name of the model type: nobody asks for this one.
    """
    for name, table in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES") and family.model_type in table:
            stock = table[family.model_type]
            table[f"swapped {family.model_type}"] = f"PosSwap{stock}"


def test_class(family: Family, scheme: str) -> Any:
    """Return the test case: transformers' mixins around the model classes of a family with a scheme."""
    common = upstream.load("test_modeling_common")
    parallel = upstream.load("test_tensor_parallel_mixin")
    parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES = None  # all model types, as the file itself says
    mixins = [common.ModelTesterMixin]
    if family.writes:
        mixins.append(upstream.load("generation.test_utils").GenerationTesterMixin)
    mixins += [upstream.load("test_training_mixin").TrainingTesterMixin, parallel.TensorParallelTesterMixin]

    class FamilyTest(*mixins, unittest.TestCase):
        all_model_classes = classes_of(family, scheme)
        model_tester = None
        model_split_percents = (0.5, 0.8, 0.9)

        def setUp(self) -> None:
            set_seed(0)
            common.global_rng.seed(0)
            torch._dynamo.reset()
            self.model_tester = ModelTester(self, family, scheme)

        def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
            return labelled(inputs, model_class, self.model_tester) if return_labels else inputs

        def prepare_config_and_inputs_for_generate(self, batch_size: int = 2) -> Any:
            config, inputs = super().prepare_config_and_inputs_for_generate(batch_size)
            inputs["attention_mask"] = inputs["attention_mask"].flip(-1)  # prompts are padded on the left
            return config, inputs

    return FamilyTest


def labelled(inputs: dict[str, Any], model_class: Any, tester: ModelTester) -> dict[str, Any]:
    """Add the labels of the two heads that the mixins know nothing of."""
    name = model_class.__name__.removeprefix("PosSwap")
    rows, zeros = tester.batch_size, torch.zeros
    if name == "BertForPreTraining":
        inputs["labels"] = zeros(rows, tester.seq_length, dtype=torch.long)
        inputs["next_sentence_label"] = zeros(rows, dtype=torch.long)
    if name == "GPT2DoubleHeadsModel":
        tokens = zeros(rows, tester.num_choices, tester.seq_length, dtype=torch.long)
        inputs |= {"input_ids": tokens, "labels": tokens, "token_type_ids": tokens, "mc_labels": tokens[:, 0, 0]}
        inputs |= {"attention_mask": torch.tril(torch.ones_like(tokens)), "mc_token_ids": tokens[:, :, 0]}
    return inputs


class Outcomes(unittest.TestResult):
    """Notes which parts of a test failed, and with what; the part without a name is the test itself."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}
        self.reason = ""

    def addError(self, test: Any, err: Any) -> None:
        self.failed[""] = "".join(traceback.format_exception(*err))

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            what = ", ".join([str(subtest._message), *(f"{name}={value}" for name, value in subtest.params.items())])
            self.failed[what.replace("PosSwap", "")] = "".join(traceback.format_exception(*err))

    def addSkip(self, test: Any, reason: str) -> None:
        self.reason = reason


def run(family: Family, scheme: str, pattern: str) -> dict[str, dict[str, Any]]:
    """Run the tests of a cell in whose names a regular expression is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody wrote is filled with NaN
    name_swapped_classes(family)
    case = test_class(family, scheme)
    outcomes = {}
    for name in unittest.TestLoader().getTestCaseNames(case):
        if not re.search(pattern, name):
            continue
        result, start = Outcomes(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            case(name).run(result)
        outcomes[name] = {
            "failed": result.failed, "skipped": result.reason, "seconds": round(time.perf_counter() - start, 2)
        }  # fmt: skip
    return outcomes


if __name__ == "__main__":
    _, _, family_name, scheme_name, output, *patterns = sys.argv
    random.seed(0)
    found = run(FAMILIES[family_name], scheme_name, patterns[0] if patterns else "")
    Path(output).write_text(json.dumps(found, indent=1), encoding="utf-8")
