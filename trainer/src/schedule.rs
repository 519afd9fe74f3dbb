//! The learning rate of each update.

use crate::config::{Schedule, TrainConfig};

/// The learning rate of update `update`, counted from 0: `peak·min(1, (update + 1)/warm-up)`, then by the schedule. Warm-up
/// counts updates, not micro-batches.
pub fn learning_rate(config: &TrainConfig, update: u64) -> f64 {
    let warmup = config.warmup_steps;
    if update < warmup {
        return config.learning_rate * (update + 1) as f64 / warmup as f64;
    }
    let left = config.steps.saturating_sub(warmup).max(1) as f64;
    let done = (update - warmup) as f64 / left;
    config.learning_rate
        * match config.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            Schedule::Linear => (1.0 - done).max(0.0),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_reaches_the_peak_and_the_schedules_end_near_zero() {
        for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::Linear] {
            let config =
                TrainConfig { steps: 110, warmup_steps: 10, learning_rate: 2.0, schedule, ..TrainConfig::default() };
            assert_eq!(learning_rate(&config, 0), 0.2);
            assert_eq!(learning_rate(&config, 9), 2.0);
            assert_eq!(learning_rate(&config, 10), 2.0);
            let last = learning_rate(&config, 109);
            assert!(
                if schedule == Schedule::Constant { last == 2.0 } else { last > 0.0 && last < 0.05 },
                "{schedule:?} {last}"
            );
        }
    }
}
