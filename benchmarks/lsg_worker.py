"""Convert an encoder with lsg-converter and compute hidden states for other_encoders.py.

It runs in an environment of its own, because the transformers that lsg-converter needs is too old for hf_posswap.
Arguments: file descriptor of a connection, folder of the stock model, longest text in tokens. It sends the versions of
its packages. Then, for each nested list of token ids (B, L), it sends the processor seconds of the forward pass and the
hidden states (B, L, D), float32.
"""

import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection

import torch
from lsg_converter import LSGConverter

PACKAGES = ("lsg-converter", "transformers", "torch")


@torch.no_grad()
def main() -> None:
    """Serve until the connection is closed."""
    descriptor, folder, length = sys.argv[1:]
    torch.set_num_threads(1)
    model, _ = LSGConverter(max_sequence_length=int(length)).convert_from_pretrained(folder, architecture="BertModel")
    model.eval()
    with Connection(int(descriptor)) as connection:
        connection.send({name: version(name) for name in PACKAGES})
        while True:
            try:
                ids = torch.tensor(connection.recv())
            except EOFError:
                return
            started = time.process_time()
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            connection.send(time.process_time() - started)
            connection.send_bytes(hidden.float().numpy().tobytes())


if __name__ == "__main__":
    main()
