"""Tables of rows: what was put in comes out, whatever the words hold."""

from hypothesis import given
from hypothesis import strategies as st

from kedge.csv_table import put_row, read_rows

WORDS = st.text(st.sampled_from("a,\"'\r\n ü;"), min_size=1, max_size=6)


@given(words=st.lists(WORDS, min_size=1, max_size=4, unique=True), reason=WORDS)
def test_words_come_out_as_they_were_put_in(words, reason, tmp_path_factory):
    table = tmp_path_factory.mktemp("table") / "results.csv"
    for number, word in enumerate([*words, words[0]]):
        put_row(table, {"dataset": word, "failure": reason, "seconds": number}, ("dataset",))
    kept = [*enumerate(words[1:], 1), (len(words), words[0])]
    assert read_rows(table) == [{"dataset": word, "failure": reason, "seconds": number} for number, word in kept]
