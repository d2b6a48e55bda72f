"""cluster_config.json: what is taken, what is refused in one line, and which slots come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.cluster.config import ClusterConfig, Gpu, Probe, Server, load_config, slots
from common.errors import InputError, NodeError

DESIGN = {
    "servers": [
        {"host": "localhost", "gpus": "auto"},
        {
            "host": "gpu1.lab",
            "user": "lab",
            "port": 22,
            "ssh_key": "~/.ssh/id_ed25519",
            "gpus": 2,
            "jobs_per_gpu": 2,
            "path": "~/ml-customization",
            "python": "env/bin/python",
        },
        {"host": "cpu1", "cpu_slots": 4},
    ]
}
SLURM = {
    "engine": "slurm",
    "slurm": {
        "partition": "gpu",
        "gpus": 1,
        "cpus": 4,
        "memory_gb": 16,
        "time": "04:00:00",
        "max_parallel": 64,
        "account": "lab",
        "jobs_per_task": 12,
        "setup": ["module load cuda"],
    },
}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def call(content: object) -> ClusterConfig:
        path = tmp_path / "cluster_config.json"
        path.write_bytes(
            content
            if isinstance(content, bytes)
            else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
        return load_config(path)

    return call


def refusal(load: Any, content: object) -> str:
    with pytest.raises(InputError) as caught:
        load(content)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert "cluster_config.json: " in message
    return message


def server(**keys: Any) -> dict[str, Any]:
    return {"servers": [{"host": "a", **keys}]}


def test_the_documented_files_are_taken(load: Any) -> None:
    config = load(DESIGN)
    assert [s.name for s in config.servers] == ["localhost", "gpu1.lab:22", "cpu1"]
    assert [s.is_local for s in config.servers] == [True, False, False]
    assert (config.heartbeat_seconds, config.suspect_seconds, config.close_seconds) == (5, 30, 60)
    assert load(SLURM).slurm.model_dump(exclude_unset=True) == SLURM["slurm"]


def test_remarks_a_byte_order_mark_and_equal_files_do_no_harm(load: Any) -> None:
    plain = load(DESIGN)
    assert load({"_note": "x", "servers": [{**s, "_why": 1} for s in DESIGN["servers"]]}) == plain
    assert load(b"\xef\xbb\xbf" + json.dumps(DESIGN).encode()) == plain


def test_what_holds_for_all_servers_is_passed_down_and_overridden_by_each(load: Any) -> None:
    config = load(
        {
            "servers": [{"host": "a"}, {"host": "b", "host_key": "strict"}],
            "host_key": "accept-new",
            "ssh_config": "~/lab",
        }
    )
    assert [(s.host_key, s.ssh_config) for s in config.servers] == [
        ("accept-new", "~/lab"),
        ("strict", "~/lab"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (server(gpu=1), ["servers[0].gpu: unknown key, did you mean gpus?"]),
        ({"serverz": []}, ["serverz: unknown key, did you mean servers?"]),
        (
            {"engine": "slurm", "slurm": {"partitions": "x"}},
            ["slurm.partitions: unknown key, did you mean partition?"],
        ),
        ({"engine": "pbs", **server()}, ["engine", "'ssh' or 'slurm'"]),
        ({"engine": "slurm"}, ['needs a "slurm" part']),
        ({"servers": []}, ["lists no servers"]),
        (server(host="node[01-20]"), ["servers[0].host", "write an entry for each node"]),
        (server(host="a,b"), ["servers[0].host", "write an entry for each node"]),
        ({}, ["lists no servers"]),
        ([], ["must be a JSON object"]),
        ({"servers": {"host": "a"}}, ["servers: input should be a valid list"]),
        ({"servers": ["a"]}, ["servers[0]"]),
        ({"servers": [{"gpus": 1}]}, ["servers[0].host: field required"]),
        (server(port="22"), ["servers[0].port: input should be a valid integer"]),
        (server(port=True), ["servers[0].port"]),
        (server(port=65536), ["servers[0].port"]),
        (server(gpus=-1), ['servers[0].gpus: must be a number, a list of GPU ids, or "auto"']),
        (server(gpus=1.5), ["servers[0].gpus: must be"]),
        (server(gpus="all"), ["servers[0].gpus: must be"]),
        (server(gpus=[0, "0;id"]), ["servers[0].gpus: must be"]),
        (server(gpus=[0, "0"]), ["servers[0].gpus: names a GPU twice"]),
        (server(gpus=0, cpu_slots=0), ["servers[0]: has no slot"]),
        (server(jobs_per_gpu=0), ["servers[0].jobs_per_gpu"]),
        (server(path="~ann/x"), ["servers[0].path: ~ is understood only as ~/..."]),
        (server(path="a\nb"), ["servers[0].path"]),
        (server(host_key="no"), ["servers[0].host_key", "'strict' or 'accept-new'"]),
        (
            {**server(), "suspect_seconds": 60},
            ["heartbeat_seconds < suspect_seconds < close_seconds"],
        ),
        ({**server(), "heartbeat_seconds": 0}, ["heartbeat_seconds"]),
        ({"servers": [{"host": "-oProxyCommand=x"}]}, ["servers[0].host: may not begin with -"]),
        ({"servers": [{"host": "a b"}]}, ["servers[0].host"]),
        ({"servers": [{"host": "$(id)"}]}, ["servers[0].host"]),
        ({"servers": [{"host": "ann@a"}]}, ["servers[0].host", '"user"']),
        (server(user="-x"), ["servers[0].user"]),
        (server(user="a;b"), ["servers[0].user"]),
    ],
)
def test_a_mistake_is_named_with_its_key(load: Any, content: object, words: list[str]) -> None:
    message = refusal(load, content)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "twice",
    [
        [{"host": "a"}, {"host": "A"}],
        [{"host": "a"}, {"host": "a", "port": 22}],
        [{"host": "a", "path": "x"}, {"host": "a", "path": "y"}],
        [{"host": "a"}, {"host": "a", "user": "ann"}],
        [{"host": "localhost"}, {"host": "127.0.0.1"}],
    ],
)
def test_a_node_given_twice_is_refused(load: Any, twice: list[dict[str, Any]]) -> None:
    assert "servers[2] is the same node as servers[1]" in refusal(
        load, {"servers": [{"host": "other"}, *twice]}
    )


def test_two_ports_of_one_address_are_two_nodes(load: Any) -> None:
    assert [
        s.name
        for s in load(
            {"servers": [{"host": "a", "port": 2201}, {"host": "a", "port": 2202}]}
        ).servers
    ] == ["a:2201", "a:2202"]


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "passwd",
        "Password",
        "ssh_password",
        "passphrase",
        "key_passphrase",
        "pass",
        "pw",
        "secret",
    ],
)
def test_a_password_is_refused_unseen_with_the_way_to_set_up_a_key(load: Any, key: str) -> None:
    for content in (server(user="lab", **{key: "hunter2"}), {**server(), key: "hunter2"}):
        message = refusal(load, content)
        assert "ssh-keygen" in message
        assert "ssh-copy-id" in message
        assert "hunter2" not in message
    assert "ssh-copy-id lab@a" in refusal(load, server(user="lab", password="hunter2"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{" + b" " * (1 << 20) + b"}", "larger than"),
        (b'{"servers": [], "servers": []}', "'servers' is given twice"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(load: Any, content: bytes, words: str) -> None:
    assert words in refusal(load, content)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["servers", "host", "gpus", "slurm", "engine", "port", "password", "x"])
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(ANY_JSON)
def test_whatever_json_holds_it_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        taken = load_config(path)
    except InputError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        return
    assert isinstance(taken, ClusterConfig)
    assert taken.servers or taken.slurm


FOUR = Probe(
    8, tuple(Gpu(str(number), used_by="user ann" if number == 1 else "") for number in range(4))
)
NONE = Probe(8)


def gpus_of(probe: Probe, **keys: Any) -> list[str | None]:
    plan = slots(Server(host="a", **keys), probe)
    assert [slot.index for slot in plan.slots] == list(range(len(plan.slots)))
    assert {slot.node for slot in plan.slots} == {"a"}
    return [slot.gpu for slot in plan.slots]


@pytest.mark.parametrize(
    ("probe", "keys", "expected"),
    [
        (FOUR, {}, ["0", "2", "3"]),
        (FOUR, {"gpus": "auto"}, ["0", "2", "3"]),
        (FOUR, {"gpus": "auto", "jobs_per_gpu": 2}, ["0", "2", "3", "0", "2", "3"]),
        (FOUR, {"gpus": 2}, ["0", "1"]),
        (FOUR, {"gpus": [3, 1]}, ["3", "1"]),
        (FOUR, {"gpus": ["GPU-3ab"]}, ["GPU-3ab"]),
        (FOUR, {"gpus": 1, "cpu_slots": 2}, ["0", None, None]),
        (FOUR, {"cpu_slots": 2}, [None, None]),
        (FOUR, {"gpus": 0}, [None] * 8),
        (FOUR, {"gpus": "auto", "cpu_slots": 1}, ["0", "2", "3", None]),
        (NONE, {}, [None] * 8),
        (NONE, {"gpus": "auto", "jobs_per_gpu": 2}, [None] * 8),
        (NONE, {"cpu_slots": 3}, [None] * 3),
        (NONE, {"gpus": "auto", "cpu_slots": 3}, [None] * 3),
    ],
)
def test_slots_are_those_that_the_file_asks_for(
    probe: Probe, keys: dict[str, Any], expected: list[str | None]
) -> None:
    assert gpus_of(probe, **keys) == expected


def test_gpus_that_others_use_are_left_out_by_name() -> None:
    assert slots(Server(host="a"), FOUR).left_out == ("GPU 1 is left out, used by user ann",)
    assert slots(Server(host="a", gpus=4), FOUR).left_out == ()


def test_a_node_that_counts_its_slots_itself_gets_so_many_and_the_rest_is_told() -> None:
    many = Probe(65536, tuple(Gpu(str(number)) for number in range(100)))
    said = "256 of its {} slots are used; give gpus or cpu_slots as numbers for more"
    for probe, keys, number in (
        (Probe(65536), {}, 65536),
        (many, {"jobs_per_gpu": 4}, 400),
        (many, {"gpus": 0}, 65536),
    ):
        plan = slots(Server(host="a", **keys), probe)
        assert (len(plan.slots), plan.left_out) == (256, (said.format(f"{number:,}"),))
    assert (
        len(slots(Server(host="a", gpus="auto", jobs_per_gpu=4, cpu_slots=300), many).slots)
        == 256 + 300
    )
    asked = slots(Server(host="a", gpus=100, jobs_per_gpu=4), many)
    assert (len(asked.slots), asked.left_out) == (400, ())


@pytest.mark.parametrize(
    ("probe", "keys", "words"),
    [
        (FOUR, {"gpus": 5}, "asks for 5 GPUs, the node has 4"),
        (NONE, {"gpus": 1}, "asks for 1 GPUs, the node has 0"),
        (FOUR, {"gpus": [0, 7]}, "no GPU 7 on the node, which has 0, 1, 2, 3"),
        (
            Probe(8, (Gpu("0", used_by="user ann"),)),
            {},
            "no slot is free: GPU 0 is left out, used by user ann",
        ),
    ],
)
def test_gpus_that_are_not_there_are_the_nodes_fault_and_never_become_cores(
    probe: Probe, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(NodeError, match=words):
        slots(Server(host="a", **keys), probe)


@pytest.mark.parametrize("user", ["LAB\\ann", "ann@lab.example", "ann.b-c_d"])
def test_users_of_a_domain_are_plain_names(user: str) -> None:
    assert Server(host="a", user=user).user == user


@pytest.mark.parametrize("user", ["ann\\", "-ann", "a b", "a;b", "a$b", "../x", "a\n"])
def test_a_user_that_a_shell_could_misread_is_refused(user: str) -> None:
    with pytest.raises(ValidationError, match="may not"):
        Server(host="a", user=user)


def test_a_configuration_that_is_not_there_comes_with_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: not found; copy .* docs/clusters.md"):
        load_config(tmp_path / "none.json")
