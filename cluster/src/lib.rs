//! Past one machine: a plan's partitions made by jobs of an existing scheduler. A partition is a pure function with an atomic
//! commit, so nothing here decides who makes what when: that is the scheduler's, and claims keep work from being done twice.

#[cfg(feature = "ballista")]
pub mod ballista;
pub mod slurm;
