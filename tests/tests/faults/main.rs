//! What coord promises on three etcd nodes of which one, or all, fail in some way: one test for each line of the table
//! in `docs/semantics.md`.

mod disk;
mod holder;
mod leader;
mod network;
mod operator;
mod tools;
