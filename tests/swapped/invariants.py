"""What holds for every cell of the matrix, for cells that are not in it: compositions, and schemes with windows."""

from pathlib import Path

from tests.matrix import test_backends, test_batching, test_decoding, test_effect, test_length
from tests.matrix import test_round_trip as on_disk
from tests.matrix.cells import Cell


def check_invariants(cell: Cell, folder: Path) -> None:
    """Restore, save and load, copies, checkpoints in the backward pass, longer texts, padding, packing, backends."""
    test_effect.test_restore_is_bit_exact(cell)
    on_disk.test_saved_and_loaded_by_stock_auto_classes(cell, folder)
    on_disk.test_copies_and_pickles_are_swapped_models_of_their_own(cell)
    on_disk.test_gradient_checkpointing_gives_the_same_gradients(cell)
    test_length.test_longer_than_before(cell)
    for backend in ("eager", "sdpa"):
        test_batching.test_padding_on_either_side_equals_alone(cell, backend)
        for use_cache in (True, False):
            test_batching.test_packed_equals_separate(cell, backend, use_cache)
    for padded in (True, False):
        test_backends.test_eager_and_sdpa_agree_in_float32(cell, padded)


def check_decoding(cell: Cell) -> None:
    """A causal model with a cache, dynamic or static, equals itself without one."""
    for chunks in ([1] * test_decoding.LENGTH, [7, 17]):
        test_decoding.test_cached_equals_uncached(cell, chunks)
    test_decoding.test_static_cache_equals_uncached(cell)
    for cache in ("dynamic", "static"):
        test_decoding.test_generate_continues_a_left_padded_batch_as_recomputation_does(cell, cache)
