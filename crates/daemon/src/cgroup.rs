//! The cgroups of pods and containers.
