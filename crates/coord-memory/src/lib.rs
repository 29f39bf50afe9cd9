//! In-process backend of the coord distributed-coordination toolkit, for unit tests
