//! How pictures are made, as far as the command line says.

use clap::Args;
use sampler::guidance::Guidance;
use sampler::solver::Solver;
use sampler::text_to_image::{Settings, TextToImage};
use shards::bucket::BucketSize;

use crate::settings::size;

/// What is not given has its default, or is as it was in the picture that is to be made again.
#[derive(Clone, Debug, Args)]
pub(crate) struct How {
    /// WIDTHxHEIGHT in pixels, or one number for a square [the training's longest side, square].
    #[arg(long, value_parser = size)]
    pub(crate) size: Option<BucketSize>,
    /// Steps from noise to picture [25].
    #[arg(long)]
    pub(crate) steps: Option<u32>,
    /// Guidance scale: 1 is none. (The reference system's cfg_scale is one less.) [4]
    #[arg(long)]
    pub(crate) guidance: Option<f64>,
    /// Guide only between these times, from 0 (picture) to 1 (noise) [0,1].
    #[arg(long, value_name = "LOW,HIGH", value_parser = interval)]
    pub(crate) guidance_interval: Option<[f64; 2]>,
    /// How far a guided step is brought back to the contrast of one without, from 0 to 1 [0].
    #[arg(long)]
    pub(crate) guidance_rescale: Option<f64>,
    /// euler, heun, midpoint, dpm++-2m, euler-stochastic (as the reference system has it) or euler-stochastic-corrected [heun].
    #[arg(long, value_parser = solver)]
    pub(crate) sampler: Option<Solver>,
    /// Moves the steps towards noise: 1 spaces them evenly [1].
    #[arg(long)]
    pub(crate) shift: Option<f64>,
}

/// The options of [`How`].
pub(crate) const OF_PICTURES: [&str; 7] =
    ["size", "steps", "guidance", "guidance_interval", "guidance_rescale", "sampler", "shift"];

impl How {
    /// The settings, where `base` says what is not given.
    pub(crate) fn over(&self, base: &Settings) -> Settings {
        let BucketSize { width, height } = self.size.unwrap_or(BucketSize { width: base.width, height: base.height });
        Settings {
            width,
            height,
            steps: self.steps.unwrap_or(base.steps),
            guidance: Guidance {
                scale: self.guidance.unwrap_or(base.guidance.scale),
                interval: self.guidance_interval.unwrap_or(base.guidance.interval),
                rescale: self.guidance_rescale.unwrap_or(base.guidance.rescale),
            },
            sampler: self.sampler.unwrap_or(base.sampler),
            shift: self.shift.unwrap_or(base.shift),
        }
    }
}

/// What is used where nothing is said.
pub(crate) fn defaults(model: &TextToImage) -> Settings {
    usual(model.state.max_resolution, model.side_multiple())
}

/// What is used of a model that was trained on pictures with a longest side of `max_resolution`, where nothing is said.
pub(crate) fn usual(max_resolution: u32, side_multiple: u32) -> Settings {
    // Any checkpoint of a few steps has seen a picture; one that has not is sampled from in its smallest size.
    let side = max_resolution.max(side_multiple);
    let guidance = Guidance::of(4.0);
    Settings { width: side, height: side, steps: 25, guidance, sampler: Solver::Heun, shift: 1.0 }
}

pub(crate) fn solver(name: &str) -> Result<Solver, String> {
    let names = Solver::ALL.map(Solver::name).join(", ");
    Solver::named(name).ok_or_else(|| format!("expected one of {names}"))
}

fn interval(text: &str) -> Result<[f64; 2], String> {
    let parsed = text.split_once(',').map(|(low, high)| (low.trim().parse(), high.trim().parse()));
    match parsed {
        Some((Ok(low), Ok(high))) => Ok([low, high]),
        _ => Err("expected two times, such as 0.2,0.9".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_options_are_listed() {
        let command = How::augment_args(clap::Command::new("sample"));
        let options: Vec<&str> = command.get_arguments().map(|option| option.get_id().as_str()).collect();
        assert_eq!(options, OF_PICTURES);
    }
}
