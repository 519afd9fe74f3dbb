//! Some of the ranks, doing things together.

use std::ops::Range;
use std::sync::Arc;

use super::error::{RankError, ranks_in_words};
use super::mesh::Mesh;

#[cfg(target_endian = "big")]
compile_error!("numbers go over the network as they lie in memory, little endian");

/// Of what one rank sums at a time: as much as goes over a link in one piece.
const BLOCK: usize = (1 << 20) / size_of::<f32>();
/// How a large broadcast is cut.
const PART: usize = 4 << 20;
/// Parts of a broadcast that a receiver has not asked for yet.
const AHEAD: usize = 4;

/// Channels from its first one on that a [`Group`] uses.
pub const CHANNELS_OF_A_GROUP: u32 = 8;

/// A group's channels, from its first one on.
#[derive(Clone, Copy)]
enum Purpose {
    Terms,
    Sums,
    Broadcast,
    Taken,
    Gather,
    Barrier,
}

/// Ranks that sum, share and wait together. One thread at a time calls it, all ranks call the same in the same order; groups
/// on other channels do not get in its way. A call that only some ranks make waits for the others until one of them is lost or
/// leaves.
#[derive(Clone, Debug)]
pub struct Group {
    mesh: Arc<Mesh>,
    /// Ascending.
    ranks: Vec<usize>,
    own: usize,
    first_channel: u32,
}

impl Group {
    /// Of these ranks, this one among them, on [`CHANNELS_OF_A_GROUP`] channels from `first_channel` on. Says nothing to anyone.
    pub fn new(mesh: Arc<Mesh>, mut ranks: Vec<usize>, first_channel: u32) -> Result<Self, RankError> {
        ranks.sort_unstable();
        ranks.dedup();
        if let Some(&rank) = ranks.iter().find(|rank| **rank >= mesh.size()) {
            return Err(RankError::NoSuchRank { rank, among: format!("in a world of {}", mesh.size()) });
        }
        let own = position(&ranks, mesh.rank())?;
        Ok(Self { mesh, ranks, own, first_channel })
    }

    /// All ranks of the mesh.
    pub fn of_all(mesh: Arc<Mesh>, first_channel: u32) -> Result<Self, RankError> {
        let ranks = (0..mesh.size()).collect();
        Self::new(mesh, ranks, first_channel)
    }

    /// Its ranks, ascending.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// This rank's place among them, from 0.
    pub fn position(&self) -> usize {
        self.own
    }

    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    fn channel(&self, purpose: Purpose) -> u32 {
        self.first_channel.saturating_add(purpose as u32)
    }

    /// The others: the next higher ones first, so that not all send to the same one.
    fn others(&self) -> impl Iterator<Item = usize> {
        let (lower, higher) = self.ranks.split_at(self.own);
        higher.iter().skip(1).chain(lower).copied()
    }

    /// Every rank's numbers become the sum of all ranks' numbers. Each sum is made once, in float32 and in the order of ranks,
    /// so all ranks get the same bits, and every run does.
    pub fn all_reduce(&self, data: &mut [f32]) -> Result<(), RankError> {
        let ranks = self.ranks.len();
        if ranks == 1 {
            return Ok(());
        }
        // While the others' terms of one round are under way, the last round is summed, and the sums of the one before come.
        let round = BLOCK * ranks;
        let rounds = data.len().div_ceil(round);
        for step in 0..rounds + 2 {
            if step < rounds {
                self.send_terms(data, step * round)?;
            }
            if (1..=rounds).contains(&step) {
                self.sum(data, (step - 1) * round)?;
            }
            if step >= 2 {
                self.receive_sums(data, (step - 2) * round)?;
            }
        }
        Ok(())
    }

    /// Which numbers of the round that begins at `start` a rank sums.
    fn share(&self, start: usize, length: usize, position: usize) -> Range<usize> {
        let count = (length - start).min(BLOCK * self.ranks.len());
        let until = |position: usize| start + count * position / self.ranks.len();
        until(position)..until(position + 1)
    }

    fn send_terms(&self, data: &[f32], start: usize) -> Result<(), RankError> {
        let positions = (self.own + 1..self.ranks.len()).chain(0..self.own);
        for (rank, position) in self.others().zip(positions) {
            let terms = slice(data, self.share(start, data.len(), position));
            if !terms.is_empty() {
                self.mesh.send(rank, self.channel(Purpose::Terms), bytemuck::cast_slice(terms))?;
            }
        }
        Ok(())
    }

    fn sum(&self, data: &mut [f32], start: usize) -> Result<(), RankError> {
        let share = self.share(start, data.len(), self.own);
        let own = data.get_mut(share).unwrap_or_default();
        if own.is_empty() {
            return Ok(());
        }
        let mut sum: Vec<f32> = Vec::new();
        for &rank in &self.ranks {
            if rank == self.mesh.rank() {
                if sum.is_empty() {
                    sum.extend_from_slice(own);
                } else {
                    sum.iter_mut().zip(&*own).for_each(|(sum, term)| *sum += term);
                }
                continue;
            }
            let bytes = self.mesh.receive(rank, self.channel(Purpose::Terms))?;
            let terms = floats(&bytes, rank, own.len())?;
            if sum.is_empty() {
                sum.extend(terms);
            } else {
                sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
        }
        own.copy_from_slice(&sum);
        for rank in self.others() {
            self.mesh.send(rank, self.channel(Purpose::Sums), bytemuck::cast_slice(own))?;
        }
        Ok(())
    }

    fn receive_sums(&self, data: &mut [f32], start: usize) -> Result<(), RankError> {
        for (position, &rank) in self.ranks.iter().enumerate() {
            let share = self.share(start, data.len(), position);
            if rank == self.mesh.rank() || share.is_empty() {
                continue;
            }
            let bytes = self.mesh.receive(rank, self.channel(Purpose::Sums))?;
            let sums = floats(&bytes, rank, share.len())?;
            data.get_mut(share).unwrap_or_default().iter_mut().zip(sums).for_each(|(number, sum)| *number = sum);
        }
        Ok(())
    }

    /// Every rank gets the bytes of rank `root`, however many there are; at most as many as a message may have.
    pub fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), RankError> {
        position(&self.ranks, root)?;
        if root == self.mesh.rank() {
            self.others().try_for_each(|rank| self.mesh.send(rank, self.channel(Purpose::Broadcast), bytes))
        } else {
            *bytes = self.mesh.receive(root, self.channel(Purpose::Broadcast))?;
            Ok(())
        }
    }

    /// Every rank gets the numbers of rank `root`. All have as many; there is no limit, and no rank has to hold much more than
    /// its own, for the root waits for those that are late.
    pub fn broadcast_slice<T: bytemuck::Pod>(&self, root: usize, data: &mut [T]) -> Result<(), RankError> {
        position(&self.ranks, root)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        let parts = bytes.len().div_ceil(PART);
        for (index, part) in bytes.chunks_mut(PART).enumerate() {
            if root == self.mesh.rank() {
                for rank in self.others() {
                    self.mesh.send(rank, self.channel(Purpose::Broadcast), part)?;
                    if index >= AHEAD {
                        self.mesh.receive(rank, self.channel(Purpose::Taken))?;
                    }
                }
            } else {
                let found = self.mesh.receive(root, self.channel(Purpose::Broadcast))?;
                if found.len() != part.len() {
                    let (what, found, expected) = ("a broadcast", found.len(), part.len());
                    return Err(RankError::Mismatch { rank: root, what, found, expected });
                }
                part.copy_from_slice(&found);
                if index + AHEAD < parts {
                    self.mesh.send(root, self.channel(Purpose::Taken), &[])?;
                }
            }
        }
        Ok(())
    }

    /// Every rank's bytes, in the order of ranks.
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RankError> {
        self.others().try_for_each(|rank| self.mesh.send(rank, self.channel(Purpose::Gather), bytes))?;
        self.ranks
            .iter()
            .map(|&rank| {
                if rank == self.mesh.rank() {
                    Ok(bytes.to_vec())
                } else {
                    self.mesh.receive(rank, self.channel(Purpose::Gather))
                }
            })
            .collect()
    }

    /// Waits until all ranks are here.
    pub fn barrier(&self) -> Result<(), RankError> {
        self.others().try_for_each(|rank| self.mesh.send(rank, self.channel(Purpose::Barrier), &[]))?;
        self.others().try_for_each(|rank| self.mesh.receive(rank, self.channel(Purpose::Barrier)).map(drop))
    }
}

fn position(ranks: &[usize], rank: usize) -> Result<usize, RankError> {
    let missing = |_place| RankError::NoSuchRank { rank, among: format!("among {}", ranks_in_words(ranks)) };
    ranks.binary_search(&rank).map_err(missing)
}

fn slice(data: &[f32], range: Range<usize>) -> &[f32] {
    data.get(range).unwrap_or_default()
}

/// A message need not lie where numbers do.
fn floats(bytes: &[u8], rank: usize, count: usize) -> Result<impl Iterator<Item = f32>, RankError> {
    let (numbers, rest) = bytes.as_chunks();
    if numbers.len() != count || !rest.is_empty() {
        let (what, found, expected) = ("a sum over ranks", bytes.len(), count * size_of::<f32>());
        return Err(RankError::Mismatch { rank, what, found, expected });
    }
    Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)))
}
