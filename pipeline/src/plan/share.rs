//! Which of a stage's partitions one of several workers makes.

use std::str::FromStr;

use super::PlannedStage;
use crate::stage::Partitioning;

/// The partitions whose number leaves `number` when it is divided by `of`: one worker's of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    number: usize,
    of: usize,
}

impl Share {
    /// `None` unless `number` is below `of`.
    pub fn new(number: usize, of: usize) -> Option<Self> {
        (number < of).then_some(Self { number, of })
    }

    /// Whether it has the partition of this number.
    pub fn has(self, partition: usize) -> bool {
        partition % self.of == self.number
    }
}

impl FromStr for Share {
    type Err = String;

    /// `3/16` is the fourth of sixteen.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        let share = numbers.and_then(|(number, of)| Self::new(number, of));
        share.ok_or_else(|| format!("`{text}` is no share: write K/N, with K from 0 to below N, such as 3/16"))
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// The part of each selected stage that a run makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    #[default]
    Whole,
    /// Only the survey, where the stage has one.
    Survey,
    /// Only these partitions; and the survey, where it is not there.
    Share(Share),
}

impl PlannedStage {
    /// Whether a run may make this partition (`None`: the survey).
    pub(crate) fn is_wanted(&self, number: Option<usize>) -> bool {
        self.selected
            && match (self.part, number) {
                (Part::Whole, _) | (Part::Survey | Part::Share(_), None) => true,
                (Part::Survey, Some(_)) => false,
                (Part::Share(share), Some(number)) => share.has(number),
            }
    }

    /// Numbers of the partitions that a run would make.
    pub fn wanted(&self) -> impl Iterator<Item = usize> + '_ {
        let missing = self.partitions.iter().enumerate().filter(|(_, partition)| partition.sidecar().is_none());
        missing.map(|(number, _)| number).filter(|number| self.is_wanted(Some(*number)))
    }

    /// Whether its survey has to be made before any of its partitions can be.
    pub fn lacks_survey(&self) -> bool {
        self.survey.as_ref().is_some_and(|survey| survey.sidecar().is_none())
    }

    /// Whether what a run would make of it reads the partition `number` of an input stage, whose first has the number `first` here.
    pub(super) fn needs(&self, first: usize, number: usize) -> bool {
        let all = match self.stage.partitioning() {
            Partitioning::Source => return false,
            Partitioning::Whole => true,
            Partitioning::Surveyed | Partitioning::Joined => self.lacks_survey(),
            Partitioning::EachInput => false,
        };
        let own = first + number;
        all || self.part == Part::Whole || (own < self.partitions.len() && self.is_wanted(Some(own)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_leave_nothing_out() {
        let shares: Vec<Share> = (0..3).map(|n| format!("{n}/3").parse().unwrap()).collect();
        for partition in 0..20 {
            assert_eq!(shares.iter().filter(|share| share.has(partition)).count(), 1);
        }
        for text in ["", "3", "3/3", "-1/3", "a/b", "1/0", "0/0", "1/2/3"] {
            assert!(text.parse::<Share>().unwrap_err().contains("K/N"), "{text}");
        }
    }
}
