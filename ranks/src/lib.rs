//! Several processes as one training: who they are, how they find each other, what they say, and how they end together.
//!
//! - [`World`]: which rank this is, from the environment.
//! - [`Roles`]: which ranks load and which train.
//! - [`Mesh`]: links among all ranks; the loss of one ends all, with one and the same error.
//! - [`Group`]: sums, broadcasts and barriers over a mesh.
//! - [`launch()`]: starts all ranks on one machine.
//!
//! It knows no tensors and no devices. Nothing that goes over the network is encrypted.

mod dial;
mod entrance;
mod error;
mod forward;
mod frame;
mod group;
mod inbox;
mod join;
mod launch;
mod link;
mod mesh;
mod nodes;
mod packet;
mod read;
mod roles;
mod shared;
mod signal;
mod verdict;
mod watch;
mod world;

pub use error::RankError;
pub use group::{CHANNELS_OF_A_GROUP, Group};
pub use launch::{ChildExit, FirstFailure, LaunchEnd, LaunchError, LaunchOptions, launch};
pub use mesh::{Mesh, MeshOptions};
pub use roles::{Role, RoleFault, Roles};
pub use world::{SECRET, World};
