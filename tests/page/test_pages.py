"""Pages: whole in one file, true to the numbers, safe against odd names, and fit for a browser."""

import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from kedge.anchors import Anchors
from kedge.duplicates import DuplicateGroup
from kedge.encoder import Encoder
from kedge.errors import InputError
from kedge.hits import Hit, SearchResult
from kedge.measurement import evaluate_vectors
from kedge.page import ReportMaterial, contact_sheet, duplicates_page, evaluate_to_page, plots, report_page
from kedge.page.comparison import _plots
from kedge.picture import thumbnail
from tests.models import make_model
from tests.pictures import draw, draw_classes

ODD = "<b>&\"'$x^2$ 🦆"
CLASSES = ("red", "green", ODD)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """What a page says and shows."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.open = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def picture(seed, size=40):
    return draw(seed, size, np.random.default_rng(seed))


def result(hits=6, query="photos/duck.png"):
    found = tuple(
        Hit(rank, f"id{rank}", f"gallery/{ODD}/{rank:04}.jpg", CLASSES[rank % 3], 0.125 * rank, "red")
        for rank in range(1, hits + 1)
    )
    return SearchResult(query, found, ("red", ODD), 0.0625)


def sheet(results):
    thumbnails = {f"id{rank}": thumbnail(picture(rank)) for rank in range(1, 6)}
    return contact_sheet(results, [thumbnail(picture(9)) for _ in results], thumbnails)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model, its report and what a report page draws, with one class of an odd name."""
    model = make_model(tmp_path_factory.mktemp("page") / "model", classes=CLASSES)
    lines = [
        '{"epoch": 1, "loss": 3.0, "attractor": 2.0, "repeller": 1.0, "norm_floor": 0.0, "validation_map": 0.3}',
        '{"epoch": 2, "loss": 2.0, "attractor": 1.5, "repeller": 0.5, "norm_floor": 0.0, "validation_map": 0.5}',
    ]
    (model.folder / "metrics.jsonl").write_text("\n".join(lines))
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = (model.anchors.vectors[labels] + random.normal(size=(60, 16)) * 0.4).astype(np.float32)
    options = {"classes": CLASSES, "distance": "cosine", "dataset": "ducks & <others>"}
    report = evaluate_vectors(vectors[:20], labels[:20], vectors[20:], labels[20:], model.anchors, **options)
    examples = {name: [thumbnail(picture(seed)) for seed in range(3)] for name in CLASSES}
    return model, report, ReportMaterial(vectors, labels, CLASSES, model.search_anchors, examples)


def assert_self_contained(text):
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"{tag} {name}={value[:80]}"
    assert not page.of("script")
    assert not page.of("link")
    assert "@import" not in text
    assert all(attributes.get("alt") for attributes in page.of("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = re.findall(r"url\(#([^)]+)\)", text)
    named += [a[k][1:] for _, a in page.tags for k in ("href", "xlink:href") if a.get(k, "").startswith("#")]
    assert set(named) <= set(ids)
    return page


def test_contact_sheet_shows_what_was_found():
    page = assert_self_contained(sheet([result()]))
    assert len(page.of("img")) == 1 + 5  # the sixth hit has no thumbnail
    assert "no picture" in page.text
    for said in ("duck.png", "0.1250", "0.7500", "6.2 %", "anchors probed: red, " + ODD, "filed under red"):
        assert said in page.text, said
    assert page.of("figure") and len(page.of("figure")) == 6
    # Odd names stand as text, never as markup.
    assert ("b", {}) not in page.tags


def test_names_change_no_markup():
    def markup(name):
        hit = Hit(1, "id1", f"{name}/{name}.jpg", name, 0.5, f"{name} too")
        results = [SearchResult(name, (hit,), (name,), 1.0)] * 4
        group = DuplicateGroup("near", ("id1", name), (name, None), (name, name), 0.5)
        pages = Page(sheet(results)), Page(duplicates_page([group], {"id1": thumbnail(picture(1))}))
        assert all(page.text.count(name) > 2 for page in pages)
        return [(tag, [*attributes]) for page in pages for tag, attributes in page.tags]

    assert markup(ODD) == markup("plain")


def test_contact_sheet_of_nothing_and_of_many():
    assert "Nothing was found" in Page(sheet([SearchResult("q.png", (), (), 0.0)])).text
    many = Page(sheet([result(query=f"q{number}.png") for number in range(12)]))
    assert len(many.of("section")) == 12
    assert [attributes["href"] for attributes in many.of("a")] == [f"#q{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 0.0], ["0.000", "0.000"]),
        ([0.01, 0.5, 12.345678, 12.345679], ["0.0100", "0.5000", "12.3457", "12.3457"]),
        ([0.0, 0.06651, 0.06652], ["0.00000", "0.06651", "0.06652"]),
        ([1e-9, 2e-9], ["1e-09", "2e-09"]),
        ([3e18, float("inf")], ["3e+18", "inf"]),
        ([float("inf")], ["inf"]),
        ([], []),
    ],
)
def test_distances_of_a_list_have_the_same_decimals(values, said):
    hits = tuple(Hit(rank, str(rank), None, None, value, "a") for rank, value in enumerate(values, 1))
    assert SearchResult("q", hits, ("a",), 1.0).distances() == said


def test_labels_of_a_page_have_colours_of_their_own_and_none_is_red():
    hits = [Hit(number, str(number), None, f"class {number % 12}", 0.0, "a") for number in range(36)]
    chips = re.findall(r"--hue:(\d+)'>([^<]+)<", sheet([SearchResult("q", tuple(hits), ("a",), 1.0)]))
    assert len(chips) == 36
    hues = sorted(int(hue) for hue, _ in {*chips})
    assert len(hues) == 12
    assert 45 <= hues[0] < hues[-1] < 315
    assert min(np.diff(hues)) > 5
    (only,) = re.findall(r"--hue:(\d+)", sheet([SearchResult("q", (hits[5],), ("a",), 1.0)]))
    assert 180 < int(only) < 240  # blue, where there is but one


def test_report_says_the_numbers_that_were_measured(measured):
    model, report, material = measured
    page = assert_self_contained(report_page(*measured))
    row = report.figures("exhaustive", "cosine")
    assert f"{100 * row.map:.1f} %" in page.text
    assert f"{100 * row.precision_at['20']:.1f} %" in page.text
    assert f"{report.queries:,} test pictures" in page.text
    assert "ducks & <others>" in page.text
    assert "this turns retrieval into classification" in page.text
    # One line for every way to search, three headings of groups, one of the table; 5 probes look at all of 3 buckets.
    table = report_page(*measured).split("<h2>Ways to search</h2>")[1].split("<h2>")[0]
    assert table.count("<tr") == len(report.search) - 4 + 4
    assert "probes 2" in table
    assert "probes 5" not in table
    assert table.count("class=own") == len(report.search) / 2 - 2
    ranked = sorted(CLASSES, key=lambda name: report.per_class[name])
    for name in (ranked[0], ranked[-1]):
        assert f"{name} {100 * report.per_class[name]:.1f} %" in page.text
    for name in CLASSES:
        assert f"{name} {100 * report.per_class[name]:.1f}" in page.text
    assert report.confusions
    for name, confusion in report.confusions.items():
        assert f"{name} {100 * report.per_class[name]:.1f} {confusion.found} {100 * confusion.share:.1f}" in page.text
    worst = report.confusions[ranked[0]]
    assert f"of the first 20, {100 * worst.share:.1f} % are {worst.found}" in page.text
    assert len(page.of("svg")) == 5
    for word in ("mAP", "P@k", "R@k", "probes", "looked at"):
        assert word in page.text
    assert model.fingerprint in page.text
    assert len(material.examples) == 3


def test_ways_by_both_distances_stand_once_where_they_find_the_same(measured):
    model, _, material = measured
    anchors = model.anchors.unit()
    vectors = material.vectors / np.linalg.norm(material.vectors, axis=1, keepdims=True)
    options = {"classes": CLASSES, "distance": "l2", "probes": (1, "exact")}
    report = evaluate_vectors(
        vectors[:20], material.labels[:20], vectors[20:], material.labels[20:], anchors, **options
    )
    assert len(report.search) == 10
    assert {row.distance for row in report.distinct()} == {"l2"}
    text = report_page(model, report, None)
    assert text.count("<th scope='row'>L2 = cosine, ") == len(report.distinct()) == 5
    assert "class=own" not in text
    other = replace(report, search=(replace(report.search[0], map=0.5 * report.search[0].map), *report.search[1:]))
    assert len(other.distinct()) == 10


def test_what_scrolls_can_be_reached_by_keys_and_has_a_name(measured):
    scrollers = [tag for tag in Page(report_page(*measured)).of("div") if "scroll" in tag.get("class", "")]
    assert [(tag["tabindex"], tag["role"], tag["aria-label"]) for tag in scrollers] == [
        ("0", "region", "Ways to search")
    ]


def test_report_without_report_or_material_or_metrics(measured, tmp_path):
    model, report, _ = measured
    bare = make_model(tmp_path / "bare", classes=[f"class {number}" for number in range(60)], dim=64)
    for text in (report_page(model, None, None), report_page(model, report, None), report_page(bare, None, None)):
        assert_self_contained(text)


@pytest.mark.parametrize(
    "lines",
    [
        [{"loss": 1.0}, {"loss": 0.5, "validation_map": 0.5}],
        [{"epoch": 1, "loss": None, "validation_map": None}],
        [{"epoch": 1, "loss": float("nan"), "validation_map": float("nan")}],
        [{"epoch": 1}],
    ],
)
def test_report_of_metrics_with_gaps(tmp_path, lines):
    model = make_model(tmp_path / "model")
    (model.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "Loss and its terms" in assert_self_contained(report_page(model, None, None)).text


@pytest.mark.parametrize(("classes", "pictures"), [(1, 12), (2, 2), (200, 400)])
def test_report_of_one_class_few_pictures_and_many_classes(tmp_path, classes, pictures):
    model = make_model(tmp_path / "model", classes=[f"class {number}" for number in range(classes)])
    labels = np.arange(pictures) % classes
    noise = np.random.default_rng(0).normal(size=(pictures, 16)) * 0.1
    vectors = (model.anchors.vectors[labels] + noise).astype(np.float32)
    names = model.card.classes
    options = {"classes": names, "distance": "cosine", "probes": (1,)}
    report = evaluate_vectors(vectors, labels, vectors, labels, model.anchors, **options)
    page = assert_self_contained(
        report_page(model, report, ReportMaterial(vectors, labels, names, model.search_anchors, {}))
    )
    assert f"All {classes} classes" in page.text


def test_embeddings_of_one_dimension_are_mapped():
    vectors = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    anchors = Anchors(("a", "b"), np.array([[-1.0], [1.0]], dtype=np.float32))
    svg = plots.embedding_map(vectors, np.arange(9) % 2, anchors.names, anchors)
    assert svg.count("<title>") == 11


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_embeddings_that_are_all_the_same_have_no_map(noise):
    vectors = (1 + noise * np.random.default_rng(0).random((9, 4))).astype(np.float32)
    anchors = Anchors(("a", "b"), vectors[:2])
    assert "too few different embeddings for a map" in plots.embedding_map(vectors, np.arange(9) % 2, "ab", anchors)


def test_losses_are_drawn_at_their_time_and_figure(monkeypatch):
    drawn, errorbar = [], plots.Axes.errorbar

    def watched(axes, across, up, spread, **looks):
        drawn.append((looks["label"], *map(float, (across[0], up[0], spread[0]))))
        return errorbar(axes, across, up, spread, **looks)

    monkeypatch.setattr(plots.Axes, "errorbar", watched)
    rows = [
        {"dataset": "birds", "backbone": "net", "loss": loss, "shots": "full", "seed": seed, "distance": "cosine"}
        | {"cosine_map": share, "l2_map": 0.1, "train_seconds": seconds}
        for loss, seed, share, seconds in (("cam", 0, 0.6, 30), ("cam", 1, 0.64, 50), ("center", 0, 0.5, 20))
    ]
    _plots(rows)
    assert drawn == [("cam", 40.0, pytest.approx(62.0), pytest.approx(2.0)), ("center", 20.0, 50.0, 0.0)]


def test_precision_recall_is_drawn_to_scale():
    precision = np.linspace(1.0, 0.2, 101) ** 2
    svg = plots.precision_recall(precision)
    # The line has the accent's colour, as a variable of the page, and no marks of ticks before it.
    path = next(path for path in re.findall(r"<path[^>]+>", svg) if "stroke: var(--accent)" in path)
    corners = np.array(re.findall(r"[ML] (\S+) (\S+)", path), dtype=float)
    across, down = corners.T
    assert len(across) == 101
    assert np.allclose((across - across[0]) / (across[-1] - across[0]), np.linspace(0, 1, 101), atol=1e-3)
    drawn = (down[-1] - down) / (down[-1] - down[0])
    assert np.allclose(drawn, (precision - precision[-1]) / (precision[0] - precision[-1]), atol=1e-3)


def test_shots_go_from_few_to_all_whatever_is_missing():
    curves = {
        "cam": {"full": (0.9, 0.0), "5": (0.2, 0.0)},
        "center": {"10": (0.3, 0.0), "5": (0.1, 0.0), "20": (0.4, 0.0)},
    }
    drawn = plots.metric_by_shots(curves, ["cam", "center"], "shots")
    places = [drawn.index(f">{shots}</text>") for shots in ("5", "10", "20", "full")]
    assert places == sorted(places)


def test_map_has_a_dot_for_each_picture_and_a_cross_for_each_anchor(measured):
    _, _, material = measured
    svg = plots.embedding_map(material.vectors, material.labels, material.classes, material.anchors)
    dots, crosses = (re.search(rf'id="map-PathCollection_{n}">(.*?)\n   </g>', svg, re.DOTALL)[1] for n in (1, 2))
    assert dots.count("<use") == len(material.vectors)
    assert len(set(re.findall(r"fill: (#\w+)", dots))) == len(CLASSES)
    words = [words for words in Page(svg).words if words.strip()]
    assert words[: len(material.labels)] == [CLASSES[label] for label in material.labels]
    assert words[len(material.labels) :] == [*CLASSES, *CLASSES]  # crosses, and the names beside them
    # A cross and its name have the colour of the class, mixed with the ink of the page.
    own = list(dict.fromkeys(re.findall(r"fill: (#\w+)", dots)))
    for marks in (crosses, svg[svg.index(crosses) + len(crosses) :]):
        mixed = re.findall(r"color-mix\(in srgb, (#\w+) 40%, var\(--ink\)\)", marks)
        assert list(dict.fromkeys(mixed)) == own


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((0.0, 0.01746, 0.1076), ["0.0000", "0.0175", "0.1076"]),
        ((0.0, 0.10761, 0.10764), ["0.00000", "0.10761", "0.10764"]),
        ((1.5, 1.5, 1.5000001), ["1.50000", "1.50000", "1.50000"]),  # no more than rounding
        ((0.278, 12.3456, 1234.0), ["0", "12", "1234"]),
        ((0.0,), ["0.000"]),
        ((), []),
    ],
)
def test_distances_of_a_list_have_the_decimals_that_tell_them_apart(distances, said):
    hits = tuple(Hit(rank, f"id{rank}", None, None, value, "red") for rank, value in enumerate(distances))
    result = SearchResult("q.png", hits, ("red",), 1.0)
    assert result.distances() == said
    text = Page(sheet([result])).text
    assert all(f" {figure} " in text for figure in said)


def test_evaluate_to_page_writes_the_page_and_names_what_hinders_it(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model")
    draw_classes(tmp_path / "photos", ["red", "green", "blue"], each=8, size=16, seed=0)
    report = evaluate_to_page(model.folder, tmp_path / "photos", probes=(1,))
    page = Page((model.folder / "report.html").read_text("utf-8"))
    assert f"{report.queries} test pictures searched" in page.text  # whether trained on is not known
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr("kedge.page.report.Encoder", lambda _, *, runtime: asked.append(runtime) or Encoder(model))
        evaluate_to_page(model.folder, tmp_path / "photos", probes=(1,), runtime="onnxruntime")
    assert asked == ["onnxruntime"]

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    broken = sorted((tmp_path / "photos" / "red").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    again = evaluate_to_page(model.folder, tmp_path / "photos", probes=(1,))
    assert [failure.path for failure in again.left_out] == [str(broken)]
    page = Page((model.folder / "report.html").read_text("utf-8"))
    assert "Left out, because they cannot be used: 1." in page.text

    before = sorted(model.folder.iterdir())
    monkeypatch.setattr("kedge.page.report.evaluate_dataset", lambda *_, **__: again)  # not looked at any more
    for step in ("tempfile.NamedTemporaryFile", "pathlib.Path.replace"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="Permission denied"):
            patch.setattr(step, refuse)
            evaluate_to_page(model.folder, tmp_path / "photos", probes=(1,))
        assert sorted(model.folder.iterdir()) == before
    assert Page((model.folder / "report.html").read_text("utf-8")).text == page.text


def test_evaluate_to_page_writes_elsewhere_and_leaves_the_models_report(tmp_path):
    model = make_model(tmp_path / "model")
    (model.folder / "report.html").write_text("as it was", "utf-8")
    draw_classes(tmp_path / "photos", ["red", "green", "blue"], each=8, size=16, seed=0)
    report = evaluate_to_page(model.folder, tmp_path / "photos", tmp_path / "page.html", probes=(1,))
    assert f"{report.queries} test pictures" in Page((tmp_path / "page.html").read_text("utf-8")).text
    assert (model.folder / "report.html").read_text("utf-8") == "as it was"
    with pytest.raises(InputError, match=r"photos cannot be written \(it is a folder\): give --html a file"):
        evaluate_to_page(model.folder, tmp_path / "photos", tmp_path / "photos")


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("KEDGE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, "no Chromium on the PATH: apt-get install chromium, or set KEDGE_CHROMIUM"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    with sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--no-first-run", *quiet]
        )
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["sheet", "report"])
def test_page_in_a_browser(browser, measured, tmp_path, kind, scheme, width):
    path = tmp_path / "page.html"
    path.write_text(sheet([result(), result(12)]) if kind == "sheet" else report_page(*measured), "utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: problems.append(request.url) if request.url[:5] not in ("file:", "data:") else None
    )
    page.goto(path.as_uri())
    assert problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("h1").is_visible()
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        ".map(text => text.match(/\\d+/g).slice(0, 3).reduce((sum, value) => sum + Number(value), 0) / 3)"
    )
    assert (ground > ink) == (scheme == "light")
    assert abs(ground - ink) > 120
    # Plots follow the scheme: their letters are as far from the ground as the page's soft text.
    for word in page.locator(".plots svg text").all()[:1]:
        shade = word.evaluate("node => getComputedStyle(node).fill.match(/\\d+/g).slice(0, 3).map(Number)")
        assert abs(sum(shade) / 3 - ground) > 100
    page.close()


def test_small_pictures_stay_sharp():
    text = contact_sheet([SearchResult("q", (), (), 0.0)], [thumbnail(Image.new("RGB", (8, 8)))], {})
    assert Page(text).of("img")[0]["class"] == "small"
    text = contact_sheet([SearchResult("q", (), (), 0.0)], [thumbnail(Image.new("RGB", (300, 200)))], {})
    assert "class" not in Page(text).of("img")[0]
