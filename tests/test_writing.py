"""A decoder's requests: what ends a text, threads that share one, and what it is given that is none."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import optdepth as od
from checker import unchecked
from optdepth.errors import InputError
from optdepth.inference.decoding import Decoder, Text, token_flops
from optdepth.stopping.rule import FixedDepth
from writers import halving, prompts, shared_writer, writer

PROMPT = prompts(3)
LLAMA = "transformers llama, per token"
LETTERS = [chr(ord("a") + token % 26) if token < 52 else " " for token in range(60)]


def spelled(numbers: list[int]) -> str:
    return "".join(LETTERS[number] for number in numbers)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def told(request: pytest.FixtureRequest) -> tuple[nn.Module, od.StagedNetwork, od.Rule]:
    model, network = shared_writer(f"transformers {request.param}, per token")
    return model, network, halving(network)


def ended(free: Text, text: Text, ends: Callable[[list[int]], bool]) -> None:
    """The text is the free one, up to the first token with which it ends, and repeats that from there on."""
    for row in range(len(free.tokens)):
        numbers = free.tokens[row].tolist()
        written = next((t for t in range(1, len(numbers) + 1) if ends(numbers[:t])), len(numbers))
        assert text.tokens[row].tolist() == numbers[:written] + numbers[written - 1 : written] * (
            len(numbers) - written
        )
        assert torch.equal(text.exit[row, :written], free.exit[row, :written])
        assert (text.exit[row, written:] == -1).all()
        assert (text.cost[row, written:] == 0).all()


def test_any_of_several_tokens_ends_a_sequence(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    free = decoder.generate(PROMPT, 10)
    ends = [int(free.tokens[0, 2]), int(free.tokens[1, 4])]
    for given in (ends, tuple(ends), [*ends, ends[0]]):
        ended(free, decoder.generate(PROMPT, 10, end=given), lambda numbers: numbers[-1] in ends)
    ended(free, decoder.generate(PROMPT, 10, end=ends[:1]), lambda numbers: numbers[-1] == ends[0])
    ended(free, decoder.generate(PROMPT, 10, end=[]), lambda numbers: False)


def test_several_ends_are_those_of_the_model_s_own_writing(told) -> None:
    """As a model whose `generation_config` names more than one, like Llama 3, writes by itself."""
    model, network, rule = told
    decoder = Decoder(model, network, FixedDepth(rule.origin, 3))
    free = decoder.generate(PROMPT, 10)
    ends = [int(free.tokens[0, 2]), int(free.tokens[1, 4])]
    text = decoder.generate(PROMPT, 10, end=ends)
    own = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )[:, 6:]
    for row in range(3):
        written = int((text.exit[row] >= 0).sum())
        assert torch.equal(own[row, :written], text.tokens[row, :written])
        assert (own[row, written:] == 0).all()


def test_strings_end_a_sequence_with_the_token_that_completes_one(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    free = decoder.generate(PROMPT, 10)
    first, second = spelled(free.tokens[0].tolist())[3:5], spelled(free.tokens[1].tolist())[6]
    for stops in (first, [first], (first, second)):
        text = decoder.generate(PROMPT, 10, stop=stops, decode=spelled)
        strings = [stops] if isinstance(stops, str) else stops
        ended(free, text, lambda numbers, strings=strings: any(stop in spelled(numbers) for stop in strings))
    end = int(free.tokens[2, 1])
    text = decoder.generate(PROMPT, 10, end=end, stop=second, decode=spelled)
    ended(free, text, lambda numbers: numbers[-1] == end or second in spelled(numbers))
    prompted = spelled(PROMPT[0].tolist())
    ended(
        free, decoder.generate(PROMPT, 10, stop=prompted, decode=spelled), lambda numbers: prompted in spelled(numbers)
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"end": 60}, "end=60 is no token: the model has 0 to 59"),
        ({"end": [3, -1]}, "end=-1 is no token: the model has 0 to 59"),
        ({"end": [3.0]}, "end=3.0 is no token: the model has 0 to 59"),
        ({"end": True}, "end=True is no token"),
        ({"stop": "a"}, "stop= and decode= go together: give decode=tokenizer.decode"),
        ({"decode": spelled}, "stop= and decode= go together"),
        ({"stop": "", "decode": spelled}, r"stop=\[''\]: give strings of a character or more"),
        ({"stop": ["a", 3], "decode": spelled}, r"stop=\['a', 3\]: give strings"),
        ({"stop": "a", "decode": lambda numbers: numbers}, "decode= returned a list: it takes a list of token numbers"),
        ({"pick": lambda logits: logits}, "what pick= returns holds torch.float64: give token numbers, of torch.int64"),
        ({"pick": lambda logits: logits.argmax(-1)[:1]}, r"what pick= returns has shape \(1,\): give .* \(3,\)"),
        (
            {"pick": lambda logits: logits.argmax(-1) + 60},
            "what pick= returns holds token 6[0-9]+|the model has 0 to 59",
        ),
        ({"pick": lambda logits: 3}, "what pick= returns is a int: give a tensor of token numbers"),
        ({"mask": torch.ones(3, 5)}, r"mask is \(3, 5\): give zeros and ones of the prompt's shape, \(3, 6\)"),
        ({"mask": torch.ones(2, 6)}, r"mask is \(2, 6\): give zeros and ones of the prompt's shape, \(3, 6\)"),
        ({"mask": 2 * torch.ones(3, 6)}, "give zeros and ones of the prompt's shape"),
        ({"mask": [[1] * 6] * 3}, "mask is a list: give zeros and ones"),
        ({"mask": torch.tensor([[True, False, True, True, True, True]] * 3)}, r"padding \(0\) on the left"),
        ({"tokens": 3.0}, "3.0 tokens to write: give a whole number from 1 on"),
        ({"tokens": True}, "True tokens to write"),
        ({"prompt": PROMPT.tolist()}, r"a prompt is a list: give a tensor of token numbers, torch.tensor\(...\)"),
        ({"prompt": PROMPT.numpy()}, "a prompt is a ndarray: give a tensor of token numbers"),
        ({"prompt": PROMPT.float()}, "a prompt holds torch.float32: give token numbers, of torch.int64"),
        ({"prompt": PROMPT[0]}, r"a prompt of shape \(6,\): give \(n, p\) token numbers"),
        (
            {"prompt": PROMPT.clone().index_fill_(0, torch.tensor(1), 60)},
            "a prompt holds token 60 in sequence 1: the model has 0",
        ),
        ({"prompt": PROMPT.clone().index_fill_(0, torch.tensor(2), -1)}, "a prompt holds token -1 in sequence 2"),
    ],
)
def test_requests_that_are_none(told, asked: dict, message: str) -> None:
    model, network, rule = told
    request = {"prompt": PROMPT, "tokens": 3} | asked
    decoder = Decoder(model, network, rule)
    with unchecked(), pytest.raises(InputError, match=message) as caught:
        decoder.generate(request.pop("prompt"), request.pop("tokens"), **request)
    assert "\n" not in str(caught.value)
    assert decoder.generate(PROMPT, 2).tokens.shape == (3, 2)  # it goes on as before


def test_texts_to_follow_that_are_none(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)
    with unchecked(), pytest.raises(InputError, match="the text is a list: give a tensor of token numbers"):
        decoder.follow(PROMPT.tolist())
    with pytest.raises(InputError, match="the text holds token 61 in sequence 0: the model has 0 to 59"):
        decoder.follow(PROMPT.clone().fill_(61))
    with unchecked(), pytest.raises(InputError, match=r"a prompt holds torch\.float32"):
        token_flops(model, network, PROMPT.float())


def test_more_tokens_than_a_model_has_positions_for() -> None:
    model, network = shared_writer("transformers gpt2, per token")
    decoder = Decoder(model, network, halving(network))
    assert decoder.generate(PROMPT, 18).tokens.shape == (3, 18)
    with pytest.raises(InputError, match="samples of length 36 ask for position 24: the network has 24; give shorter"):
        decoder.generate(PROMPT, 30)


def test_whole_numbers_and_masks_of_any_type_are_the_same(told) -> None:
    model, network, rule = told
    decoder, mask = Decoder(model, network, rule), torch.ones_like(PROMPT)
    mask[1, :3] = 0
    expected = decoder.generate(PROMPT, 6, mask=mask).tokens
    for kind in (torch.bool, torch.float32, torch.int32):
        with unchecked():
            assert torch.equal(decoder.generate(PROMPT.int(), 6, mask=mask.to(kind)).tokens, expected)


def test_answers_that_overflow_are_announced() -> None:
    model, network = writer(LLAMA)
    with torch.no_grad():
        model.model.norm.weight.mul_(1e200)
        model.lm_head.weight.mul_(1e200)
    rule = FixedDepth(halving(network).origin, 3)
    with pytest.raises(InputError, match="sequence 0 is answered with NaN or infinity: the model overflows in float64"):
        Decoder(model, network, rule).generate(PROMPT, 3)


def test_threads_that_share_a_decoder_take_turns(told) -> None:
    """Forty texts from eight threads, and as many from a second decoder of the same model; none fails, none differs."""
    model, network, rule = told
    decoders = [Decoder(model, network, rule), Decoder(model, network, FixedDepth(rule.origin, 1))]
    expected = [decoder.generate(PROMPT, 6).tokens for decoder in decoders]
    wrong: list[object] = []

    def write(which: int) -> None:
        for _ in range(5):
            try:
                found = decoders[which].generate(PROMPT, 6).tokens
            except Exception as error:  # whatever goes wrong is to be seen here
                wrong.append(error)
            else:
                wrong.extend([] if torch.equal(found, expected[which]) else [found])

    workers = [threading.Thread(target=write, args=(i % 2,)) for i in range(16)]
    for worker in workers:
        worker.start()
    for _ in range(5):  # the model itself goes on being anybody's
        model(PROMPT)
        assert not any("forward" in vars(module) for module in model.modules())
    for worker in workers:
        worker.join()
    assert wrong == []


def test_a_decoder_that_is_called_while_it_waits_says_so(told) -> None:
    model, network, rule = told
    decoder = Decoder(model, network, rule)

    def again(logits: Tensor) -> Tensor:
        return decoder.generate(PROMPT, 1).tokens[:, 0]

    with pytest.raises(InputError, match="calls the decoder that is waiting for it: give it a decoder of its own"):
        decoder.generate(PROMPT, 3, pick=again)
    assert decoder.generate(PROMPT, 2).tokens.shape == (3, 2)


def test_a_model_in_training_is_written_with_as_in_evaluation() -> None:
    """Dropout in the attention of this one would change every text."""
    model, network = writer(LLAMA)
    decoder = Decoder(model, network, halving(network))
    expected = decoder.generate(PROMPT, 8)
    model.train()
    network.train()
    for _ in range(2):
        text = decoder.generate(PROMPT, 8)
        assert torch.equal(text.tokens, expected.tokens)
        assert torch.equal(text.exit, expected.exit)
        assert decoder.follow(torch.cat([PROMPT, text.tokens], 1), prompt=6).loss == 0
    later = Decoder(model, network, halving(network)).generate(PROMPT, 8)
    assert torch.equal(later.tokens, expected.tokens)
    assert all(module.training for module in (model, network, model.model.layers[0]))
