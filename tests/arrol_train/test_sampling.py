"""How samples were drawn, as it is written down."""

from __future__ import annotations

from arrol_train.sampling import sampling_record
from arrol_tts.engine.request import Sampling


def test_the_usual_three_are_always_written_and_others_where_they_are_on() -> None:
    assert sampling_record(Sampling(n=4, seed=3)) == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024}
    chosen = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, stop=("\n",), stop_token_ids=(5,), n=1)
    record = sampling_record(chosen)
    assert record == {
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.1,
        "max_tokens": 1024,
        "stop": ["\n"],
        "stop_token_ids": [5],
    }
    assert Sampling(n=1, **record) == chosen
