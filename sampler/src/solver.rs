//! The ways to follow the velocity from noise (t = 1) to an image (t = 0).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// `x −= v·dt`: one evaluation a step.
    Euler,
    /// The mean of the velocities at both ends of a step: two evaluations a step, the second at t = 0 in the last.
    Heun,
    /// Euler with fresh noise after every step, the last included: `+ σ·z·√dt`, σ = t(1 − t)/(1 − t + 0.008). The reference
    /// system's; it does not keep the distribution at each time.
    EulerStochastic,
    /// The same with the drift that makes up for the noise: `− σ²/2·(x + (1 − t)·v)/t·dt`.
    EulerStochasticCorrected,
}

impl Solver {
    /// How much noise a step from `t` adds.
    fn noise_scale(self, t: f64) -> f64 {
        match self {
            Self::Euler | Self::Heun => 0.0,
            Self::EulerStochastic | Self::EulerStochasticCorrected => t * (1.0 - t) / (1.0 - t + 0.008),
        }
    }
}

/// `steps` + 1 times from 1 to 0, evenly spaced and then moved towards noise by `shift`: t' = s·t / (1 + (s − 1)·t).
pub fn times(steps: u32, shift: f64) -> Vec<f64> {
    let even = (0..=steps).map(|i| 1.0 - f64::from(i) / f64::from(steps.max(1)));
    even.map(|t| shift * t / (1.0 + (shift - 1.0) * t)).collect()
}

/// Follows `velocity(x, t)` from `noise` (batch, channels, height, width) along `times`, which fall from 1 to 0.
/// `fresh(step)` gives standard normal noise like `noise` to the solvers that add some in each step; `step_done` hears the
/// number of steps done. An error of `velocity` ends the way.
pub fn follow<E>(
    solver: Solver,
    times: &[f64],
    noise: &Tensor,
    velocity: impl Fn(&Tensor, f64) -> Result<Tensor, E>,
    fresh: impl Fn(usize) -> Tensor,
    mut step_done: impl FnMut(usize),
) -> Result<Tensor, E> {
    tch::no_grad(|| {
        // A copy: steps are taken in place.
        let mut x = noise.copy();
        for (i, pair) in times.windows(2).enumerate() {
            let &[t, next] = pair else { break };
            let dt = t - next;
            let v = velocity(&x, t)?;
            let sigma = solver.noise_scale(t);
            let v = match solver {
                Solver::Euler | Solver::EulerStochastic => v,
                Solver::Heun => (&v + velocity(&(&x - &v * dt), next)?) / 2.0,
                Solver::EulerStochasticCorrected => {
                    let pull = (&x + &v * (1.0 - t)) * (sigma * sigma / 2.0 / t);
                    v + pull
                }
            };
            x -= v * dt;
            if sigma > 0.0 {
                x += fresh(i) * (sigma * dt.sqrt());
            }
            step_done(i + 1);
        }
        Ok(x)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::random::Stream;
    use tch::{Device, Kind};

    #[test]
    fn heun_beats_euler_on_a_curved_path_and_both_reach_the_end_of_a_straight_one() {
        let noise = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let end = |solver, steps, velocity: fn(&Tensor, f64) -> Tensor| {
            let velocity = |x: &Tensor, t| Ok::<_, std::convert::Infallible>(velocity(x, t));
            let Ok(x) = follow(solver, &times(steps, 1.0), &noise, velocity, |_| noise.zeros_like(), |_| ());
            x.double_value(&[0, 0, 0, 0])
        };
        // dx/dt = 1: x(0) = 0, exactly.
        let straight: fn(&Tensor, f64) -> Tensor = |x, _| x.ones_like();
        assert!(end(Solver::Euler, 3, straight).abs() < 1e-6 && end(Solver::Heun, 3, straight).abs() < 1e-6);
        // dx/dt = x: x(0) = 1/e.
        let curved: fn(&Tensor, f64) -> Tensor = |x, _| x.shallow_clone();
        let error = |solver| (end(solver, 10, curved) - (-1f64).exp()).abs();
        assert!(error(Solver::Heun) * 10.0 < error(Solver::Euler));
    }

    #[test]
    fn noise_with_its_correction_keeps_the_distribution_and_without_it_does_not() {
        // Data N(0, 1), noise N(0, 1): x_t has the variance (1 − t)² + t², and the velocity is linear in x.
        let velocity = |x: &Tensor, t: f64| {
            let variance = (1.0 - t) * (1.0 - t) + t * t;
            Ok::<_, std::convert::Infallible>(x * ((2.0 * t - 1.0) / variance))
        };
        let normal = |step: usize| Stream::new(7, "test", &[step as u64]).normal_tensor(&[20_000], Device::Cpu);
        let end = |solver| {
            let Ok(x) = follow(solver, &times(200, 1.0), &normal(1000), velocity, normal, |_| ());
            x.std(false).double_value(&[])
        };
        assert!((end(Solver::EulerStochasticCorrected) - 1.0).abs() < 0.03);
        assert!((end(Solver::Euler) - 1.0).abs() < 0.03);
        assert!(end(Solver::EulerStochastic) > 1.1);
    }

    #[test]
    fn times_run_from_one_to_zero_whatever_the_shift() {
        for shift in [0.5, 1.0, 3.0] {
            let times = times(7, shift);
            assert_eq!((times.len(), times[0], times[7]), (8, 1.0, 0.0));
            assert!(times.windows(2).all(|p| p[0] > p[1]));
        }
    }
}
