//! Load-balanced tonic connections over any coord service registry
