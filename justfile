# Shorter names for what cargo does anyway; nothing needs `just`.

# List the recipes.
default:
    @just --list

# All tests, against a real etcd that is found or fetched; arguments go to the harnesses.
test *args:
    cargo xtask test -- {{args}}

# Formatting, clippy, documentation and feature combinations.
lint:
    cargo xtask lint

# An empty etcd on loopback, until Ctrl-C.
etcd port="2379":
    cargo xtask etcd --port {{port}}

# The tour of all four capabilities in memory: no etcd and no protoc needed.
quickstart:
    cargo run --package coord --example quickstart --no-default-features --features memory

# The same tour against an etcd: `just quickstart-etcd etcd://127.0.0.1:2379/demo`.
quickstart-etcd url:
    cargo run --package coord --example quickstart --features etcd,grpc -- {{url}}

# coord beside its peers, in one run.
bench area="lock" *args:
    cargo xtask bench {{area}} {{args}}

# The documentation in a browser.
doc:
    cargo doc --workspace --all-features --no-deps --open
