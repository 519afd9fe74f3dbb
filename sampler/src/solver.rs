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
    /// The velocity in the middle of a step: two evaluations a step.
    Midpoint,
    /// DPM-Solver++ of second order, which goes on from the step before (Lu et al. 2022, algorithm 2), with α = 1 − t and σ = t: one
    /// evaluation a step.
    #[serde(rename = "dpm++-2m")]
    DpmPlusPlus2M,
    /// Euler with fresh noise after every step, the last included: `+ σ·z·√dt`, σ = t(1 − t)/(1 − t + 0.008). The reference
    /// system's; it does not keep the distribution at each time.
    EulerStochastic,
    /// The same with the drift that makes up for the noise: `− σ²/2·(x + (1 − t)·v)/t·dt`.
    EulerStochasticCorrected,
}

impl Solver {
    pub const ALL: [Self; 6] = [
        Self::Euler,
        Self::Heun,
        Self::Midpoint,
        Self::DpmPlusPlus2M,
        Self::EulerStochastic,
        Self::EulerStochasticCorrected,
    ];

    /// As in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Heun => "heun",
            Self::Midpoint => "midpoint",
            Self::DpmPlusPlus2M => "dpm++-2m",
            Self::EulerStochastic => "euler-stochastic",
            Self::EulerStochasticCorrected => "euler-stochastic-corrected",
        }
    }

    /// The solver of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|solver| solver.name() == name)
    }

    /// Evaluations of the velocity in a step.
    pub fn evaluations(self) -> u32 {
        match self {
            Self::Heun | Self::Midpoint => 2,
            _ => 1,
        }
    }

    /// How much noise a step from `t` adds.
    fn noise_scale(self, t: f64) -> f64 {
        match self {
            Self::EulerStochastic | Self::EulerStochasticCorrected => t * (1.0 - t) / (1.0 - t + 0.008),
            _ => 0.0,
        }
    }
}

impl std::fmt::Display for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `steps` + 1 times from 1 to 0, evenly spaced and then moved towards noise by `shift`: t' = s·t / (1 + (s − 1)·t).
pub fn times(steps: u32, shift: f64) -> Vec<f64> {
    let even = (0..=steps).map(|i| 1.0 - f64::from(i) / f64::from(steps.max(1)));
    even.map(|t| shift * t / (1.0 + (shift - 1.0) * t)).collect()
}

/// Follows `velocity(x, t)` from `noise` (batch, channels, height, width) along `times`, which fall from 1 to 0.
/// `fresh(step)` gives standard normal noise like `noise` to the solvers that add some in each step; `step_done` hears the
/// number of steps done, and where they led. An error of either ends the way.
pub fn follow<E>(
    solver: Solver,
    times: &[f64],
    noise: &Tensor,
    velocity: impl Fn(&Tensor, f64) -> Result<Tensor, E>,
    fresh: impl Fn(usize) -> Tensor,
    mut step_done: impl FnMut(usize, &Tensor) -> Result<(), E>,
) -> Result<Tensor, E> {
    tch::no_grad(|| {
        // A copy: steps are taken in place.
        let mut x = noise.copy();
        let mut before: Option<Before> = None;
        for (i, pair) in times.windows(2).enumerate() {
            let &[t, next] = pair else { break };
            let dt = t - next;
            let v = velocity(&x, t)?;
            let sigma = solver.noise_scale(t);
            match solver {
                Solver::DpmPlusPlus2M => {
                    let data = &x - &v * t;
                    x = multistep(&x, &data, [t, next], before.as_ref());
                    before = Some(Before { data, t });
                }
                Solver::Euler | Solver::EulerStochastic => x -= v * dt,
                Solver::Heun => x -= (&v + velocity(&(&x - &v * dt), next)?) * (dt / 2.0),
                Solver::Midpoint => x -= velocity(&(&x - &v * (dt / 2.0)), t - dt / 2.0)? * dt,
                Solver::EulerStochasticCorrected => {
                    let pull = (&x + &v * (1.0 - t)) * (sigma * sigma / 2.0 / t);
                    x -= (v + pull) * dt;
                }
            }
            if sigma > 0.0 {
                x += fresh(i) * (sigma * dt.sqrt());
            }
            step_done(i + 1, &x)?;
        }
        Ok(x)
    })
}

/// What the step before found.
struct Before {
    /// The image that it foresaw.
    data: Tensor,
    t: f64,
}

/// A step of DPM-Solver++(2M): in λ = ln((1 − t)/t) the foreseen image is taken to go on as it did. λ is infinite at both ends of the
/// way, where a step is of first order.
fn multistep(x: &Tensor, data: &Tensor, [t, next]: [f64; 2], before: Option<&Before>) -> Tensor {
    let lambda = |t: f64| ((1.0 - t) / t).ln();
    let h = lambda(next) - lambda(t);
    let ratio = before.map(|before| (lambda(t) - lambda(before.t)) / h);
    let towards = match before.zip(ratio.filter(|ratio| ratio.is_finite() && *ratio > 0.0)) {
        Some((before, ratio)) => data * (1.0 + 0.5 / ratio) - &before.data * (0.5 / ratio),
        None => data.shallow_clone(),
    };
    x * (next / t) - towards * ((1.0 - next) * (-h).exp_m1())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use models::random::Stream;
    use tch::{Device, Kind};

    /// Where a way from `noise` with data N(mean, deviation²) and noise N(0, 1) ends. At time t both are mixed into a normal variable of
    /// mean (1 − t)·mean and variance (1 − t)²·deviation² + t², and the velocity is linear in x.
    fn end(solver: Solver, steps: u32, [mean, deviation]: [f64; 2], noise: &Tensor, shift: f64) -> Tensor {
        let velocity = |x: &Tensor, t: f64| {
            let left = 1.0 - t;
            let variance = left * left * deviation * deviation + t * t;
            let slope = (t - left * deviation * deviation) / variance;
            Ok::<_, Infallible>((x - left * mean) * slope - mean)
        };
        let normal = |step: usize| {
            Stream::new(7, "test", &[step as u64]).normal_tensor(&noise.size(), Device::Cpu).to_kind(noise.kind())
        };
        let Ok(x) = follow(solver, &times(steps, shift), noise, velocity, normal, |_, _| Ok(()));
        x
    }

    /// The order with which a solver converges: by how much the error, of `end` after so many steps, shrinks with their length.
    fn order(error: impl Fn(u32) -> f64) -> f64 {
        (error(320) / error(1280)).log2() / 2.0
    }

    /// The exact way takes the noise z to mean + deviation·z.
    #[test]
    fn every_solver_converges_with_its_order() {
        let noise = Tensor::from_slice(&[-2.0, -0.7, 0.0, 0.4, 1.9f64]);
        let gaussian = [0.8, 0.3];
        let exact = &noise * gaussian[1] + gaussian[0];
        let largest = |difference: Tensor| difference.abs().max().double_value(&[]);
        for (solver, expected) in
            [(Solver::Euler, 1.0), (Solver::Heun, 2.0), (Solver::Midpoint, 2.0), (Solver::DpmPlusPlus2M, 2.0)]
        {
            // The multistep solver comes near its order slowly, for λ makes great leaps at the end of the way.
            let slack = if solver == Solver::DpmPlusPlus2M { 0.35 } else { 0.25 };
            // The midpoint's leading errors cancel on this field: it is of third order there.
            let found = order(|steps| largest(end(solver, steps, gaussian, &noise, 1.0) - &exact));
            let most = if solver == Solver::Midpoint { 3.25 } else { expected + 0.25 };
            assert!(found > expected - slack && found < most, "{solver}: order {found:.3}");
            // dx/dt = x ends at z/e.
            let found = order(|steps| {
                let velocity = |x: &Tensor, _| Ok::<_, Infallible>(x.shallow_clone());
                let fresh = |_| noise.zeros_like();
                let Ok(x) = follow(solver, &times(steps, 1.0), &noise, velocity, fresh, |_, _| Ok(()));
                largest(x - &noise * (-1f64).exp())
            });
            assert!((found - expected).abs() < slack, "{solver}: order {found:.3} of an exponential");
        }
        // With as many evaluations, the multistep solver is far better than Euler's.
        let error = |solver: Solver| {
            let steps = 24 / solver.evaluations();
            largest(end(solver, steps, gaussian, &noise, 1.0) - &exact)
        };
        assert!(error(Solver::DpmPlusPlus2M) < error(Solver::Euler) / 5.0);
    }

    /// Kolmogorov and Smirnov's distance of samples from N(mean, deviation²), times the root of their number; above 1.95 in one of a
    /// thousand samples of that distribution.
    fn distance(samples: &Tensor, [mean, deviation]: [f64; 2]) -> f64 {
        let samples: Tensor = (samples.view([-1]).to_kind(Kind::Double).sort(0, false).0 - mean) / deviation;
        let expected: Tensor = ((samples / std::f64::consts::SQRT_2).erf() + 1.0) / 2.0;
        let count = expected.numel() as i64;
        let ranks = Tensor::arange(count, (Kind::Double, Device::Cpu)) / count as f64;
        let above = (&ranks - &expected).abs().max().double_value(&[]);
        let below = (ranks + 1.0 / count as f64 - expected).abs().max().double_value(&[]);
        above.max(below) * (count as f64).sqrt()
    }

    #[test]
    fn noise_with_its_correction_keeps_the_distribution_and_without_it_does_not() {
        let noise = Stream::new(7, "noise", &[]).normal_tensor(&[20_000], Device::Cpu).to_kind(Kind::Double);
        let gaussian = [0.5, 1.0];
        let of = |solver| distance(&end(solver, 400, gaussian, &noise, 1.0), gaussian);
        let (corrected, heun, plain) =
            (of(Solver::EulerStochasticCorrected), of(Solver::Heun), of(Solver::EulerStochastic));
        assert!(corrected < 1.95 && heun < 1.95, "{corrected} {heun}");
        assert!(plain > 5.0, "{plain}");
    }

    #[test]
    fn times_run_from_one_to_zero_whatever_the_shift() {
        for shift in [0.5, 1.0, 3.0] {
            let times = times(7, shift);
            assert_eq!((times.len(), times[0], times[7]), (8, 1.0, 0.0));
            assert!(times.windows(2).all(|p| p[0] > p[1]));
        }
        // One step is one step, by any of those of first order at the ends.
        let noise = Tensor::from_slice(&[0.3, -1.0f64]);
        for solver in [Solver::Euler, Solver::DpmPlusPlus2M] {
            let far = (end(solver, 1, [0.8, 0.3], &noise, 2.0) - 0.8).abs().max().double_value(&[]);
            assert!(far < 1e-12, "{solver}: {far}");
        }
    }

    #[test]
    fn names_are_those_of_manifests_and_an_error_ends_the_way() {
        for solver in Solver::ALL {
            assert_eq!(serde_json::to_value(solver).unwrap(), solver.name());
            assert_eq!(Solver::named(solver.name()), Some(solver));
            let noise = Tensor::ones([1], (Kind::Float, Device::Cpu));
            let stopped = follow(
                solver,
                &times(5, 1.0),
                &noise,
                |x, _| Ok(x.ones_like()),
                |_| noise.zeros_like(),
                |step, _| if step == 3 { Err(step) } else { Ok(()) },
            );
            assert_eq!(stopped, Err(3));
        }
    }
}
