//! Which ranks load and which train.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::{RankError, ranks_in_words};

/// Every rank's role. Empty `loaders`: each loads its own share of a batch and trains on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    size: usize,
    loaders: BTreeMap<usize, Vec<usize>>,
    loader_of: BTreeMap<usize, usize>,
}

/// What one rank does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'a> {
    /// It loads and trains.
    Both,
    /// It loads for these ranks, ascending.
    Loader { models: &'a [usize] },
    /// It trains on what this rank loads.
    Model { loader: usize },
}

/// What is wrong with a choice of roles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleFault {
    #[error("{} no role", have(ranks))]
    NoRole { ranks: Vec<usize> },
    #[error("there is no rank {rank}")]
    NoSuchRank { rank: usize },
    #[error("rank {rank} loads and is a model rank of loader {loader} too")]
    LoadsAndTrains { rank: usize, loader: usize },
    #[error("rank {rank} is a model rank of loaders {first} and {second}")]
    TwoLoaders { rank: usize, first: usize, second: usize },
    #[error("rank {rank} is listed twice by loader {loader}")]
    Twice { rank: usize, loader: usize },
    #[error("loader {loader} has no model ranks")]
    NoModels { loader: usize },
    #[error("models_per_loader = {models_per_loader} needs a multiple of {} ranks", models_per_loader + 1)]
    NotWhole { models_per_loader: usize },
    #[error("models_per_loader is 0: leave it out, and every rank loads for itself")]
    NoModelsPerLoader,
}

fn have(ranks: &[usize]) -> String {
    format!("{} {}", ranks_in_words(ranks), if ranks.len() == 1 { "has" } else { "have" })
}

impl Roles {
    /// Every rank loads and trains.
    pub fn all_in_one(size: usize) -> Self {
        Self { size, loaders: BTreeMap::new(), loader_of: BTreeMap::new() }
    }

    /// Each loader rank with its model ranks. All faults are reported at once.
    pub fn from_loaders(loaders: BTreeMap<usize, Vec<usize>>, size: usize) -> Result<Self, RankError> {
        let mut faults = Vec::new();
        let mut loader_of = BTreeMap::new();
        for (&loader, models) in &loaders {
            if loader >= size {
                faults.push(RoleFault::NoSuchRank { rank: loader });
            }
            if models.is_empty() {
                faults.push(RoleFault::NoModels { loader });
            }
            for &rank in models {
                if rank >= size {
                    faults.push(RoleFault::NoSuchRank { rank });
                } else if loaders.contains_key(&rank) {
                    faults.push(RoleFault::LoadsAndTrains { rank, loader });
                } else {
                    match loader_of.entry(rank) {
                        Entry::Vacant(entry) => _ = entry.insert(loader),
                        Entry::Occupied(entry) if *entry.get() == loader => {
                            faults.push(RoleFault::Twice { rank, loader });
                        }
                        Entry::Occupied(entry) => {
                            faults.push(RoleFault::TwoLoaders { rank, first: *entry.get(), second: loader });
                        }
                    }
                }
            }
        }
        let ranks: Vec<_> = (0..size).filter(|r| !loaders.contains_key(r) && !loader_of.contains_key(r)).collect();
        if !ranks.is_empty() {
            faults.push(RoleFault::NoRole { ranks });
        }
        if !faults.is_empty() {
            return Err(RankError::Roles { size, faults });
        }
        let mut loaders = loaders;
        for models in loaders.values_mut() {
            models.sort_unstable();
        }
        Ok(Self { size, loaders, loader_of })
    }

    /// Groups of a loader and the `models_per_loader` ranks after it.
    pub fn from_models_per_loader(models_per_loader: usize, size: usize) -> Result<Self, RankError> {
        let fault = |fault| Err(RankError::Roles { size, faults: vec![fault] });
        if models_per_loader == 0 {
            return fault(RoleFault::NoModelsPerLoader);
        }
        // In a world of at most 100000 ranks no more can fit; and so the sum stays a number.
        if models_per_loader >= size || !size.is_multiple_of(models_per_loader + 1) {
            return fault(RoleFault::NotWhole { models_per_loader: models_per_loader.min(usize::MAX - 1) });
        }
        let group = models_per_loader + 1;
        let loaders = (0..size).step_by(group).map(|first| (first, (first + 1..first + group).collect()));
        Self::from_loaders(loaders.collect(), size)
    }

    /// One that is not of this world has none; it gets [`Role::Both`].
    pub fn role_of(&self, rank: usize) -> Role<'_> {
        if let Some(models) = self.loaders.get(&rank) {
            Role::Loader { models }
        } else if let Some(&loader) = self.loader_of.get(&rank) {
            Role::Model { loader }
        } else {
            Role::Both
        }
    }

    /// Those that train, ascending.
    pub fn model_ranks(&self) -> Vec<usize> {
        (0..self.size).filter(|rank| !self.loaders.contains_key(rank)).collect()
    }

    /// Those that load, ascending.
    pub fn loader_ranks(&self) -> Vec<usize> {
        if self.loaders.is_empty() { (0..self.size).collect() } else { self.loaders.keys().copied().collect() }
    }

    /// Each loader rank's model ranks; empty where every rank does both.
    pub fn loaders(&self) -> &BTreeMap<usize, Vec<usize>> {
        &self.loaders
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explicit(loaders: &[(usize, &[usize])], size: usize) -> Result<Roles, String> {
        let loaders = loaders.iter().map(|(loader, models)| (*loader, models.to_vec())).collect();
        Roles::from_loaders(loaders, size).map_err(|error| error.to_string())
    }

    #[test]
    fn loaders_and_models() {
        let roles = explicit(&[(0, &[4, 2, 3]), (1, &[5, 6, 7])], 8).unwrap();
        assert_eq!(roles.role_of(0), Role::Loader { models: &[2, 3, 4] });
        assert_eq!(roles.role_of(6), Role::Model { loader: 1 });
        assert_eq!(roles.model_ranks(), [2, 3, 4, 5, 6, 7]);
        assert_eq!(roles.loader_ranks(), [0, 1]);
        let roles = Roles::from_models_per_loader(3, 8).unwrap();
        assert_eq!(roles.role_of(4), Role::Loader { models: &[5, 6, 7] });
        assert_eq!(roles.role_of(3), Role::Model { loader: 0 });
        assert_eq!(roles.model_ranks(), [1, 2, 3, 5, 6, 7]);
        let roles = Roles::all_in_one(2);
        assert_eq!((roles.role_of(1), roles.model_ranks(), roles.loader_ranks()), (Role::Both, vec![0, 1], vec![0, 1]));
    }

    #[test]
    fn all_faults_are_named() {
        let error = explicit(&[(0, &[1, 2, 2, 9]), (1, &[2]), (7, &[])], 6).unwrap_err();
        for words in [
            "rank 1 loads and is a model rank of loader 0 too",
            "rank 2 is listed twice by loader 0",
            "there is no rank 9",
            "rank 2 is a model rank of loaders 0 and 1",
            "there is no rank 7",
            "loader 7 has no model ranks",
            "ranks 3, 4 and 5 have no role",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
        for (models, size, words) in [
            (0, 4, "is 0"),
            (3, 6, "a multiple of 4 ranks"),
            (8, 4, "a multiple of 9"),
            (usize::MAX, 4, "a multiple of"),
        ] {
            let error = Roles::from_models_per_loader(models, size).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
