//! The pod's network: CNI where there is a configuration for it, built in where there is none.
