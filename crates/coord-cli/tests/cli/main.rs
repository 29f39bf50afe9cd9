//! The command `coord` as people and scripts use it: real processes against a real etcd.

mod bytes;
mod config;
mod docs;
mod doctor;
mod elect;
mod held;
mod lock;
mod service;
mod terminal;
mod tools;
mod tree;
