//! `encode`: what text encoders and latents make of prompts and pictures, to look at.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use image::RgbImage;
use models::autoencoder::Affine;
use models::latents::{AutoencoderLatents, Latents};
use models::random::Stream;
use models::text::{Padding, PretrainedText, TextEncoding};
use models::weights;
use sampler::opened::{Moved, Opened, Parameters};
use sampler::text_to_image::MOST_PIXELS;
use sampler::{grid, pictures};
use tch::{Device, Kind, Tensor};

use crate::errors::{OK, Usage};
use crate::watch::{self, say};

#[derive(Debug, Args)]
pub(crate) struct Encode {
    /// A text to encode; may be given several times.
    #[arg(long)]
    prompt: Vec<String>,
    /// A picture to encode; may be given several times.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Encode as for this checkpoint, with the models that it was trained with; those of the folders given below lie elsewhere now.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Folder of Gemma 2. Without the three text models, and without a checkpoint, texts are encoded by hashing.
    #[arg(long)]
    gemma: Option<PathBuf>,
    /// Folder of ModernBERT.
    #[arg(long)]
    modernbert: Option<PathBuf>,
    /// Folder of CLIP.
    #[arg(long)]
    clip: Option<PathBuf>,
    /// Folder of an AutoencoderKL. Without it, and without a checkpoint, latents are the pixels themselves.
    #[arg(long)]
    vae: Option<PathBuf>,
    /// The autoencoder's latents are scaled, then shifted, as the reference system does.
    #[arg(long, requires = "vae", conflicts_with = "checkpoint")]
    scale_then_shift: bool,
    /// Draws latents from the autoencoder's distribution with this seed [its mean].
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for the tensors, and pictures of them.
    #[arg(long, default_value = "encoded")]
    out: PathBuf,
}

impl Encode {
    pub(crate) fn run(self) -> Result<u8> {
        if self.prompt.is_empty() && self.image.is_empty() {
            return Err(Usage("nothing to encode: give --prompt \"…\" or --image FILE".to_owned()).into());
        }
        let (text, latents) = self.encodings()?;
        shards::disk::create_folder(&self.out)?;
        if !self.prompt.is_empty() {
            let captions: Vec<&str> = self.prompt.iter().map(String::as_str).collect();
            let condition = text.encoder(Device::Cpu)?.encode(&captions)?;
            let mut tensors: Vec<(String, Tensor)> =
                condition.tokens.into_iter().enumerate().map(|(i, t)| (format!("tokens.{i}"), t)).collect();
            tensors.push(("pooled".to_owned(), condition.pooled));
            self.write("prompts.safetensors", &tensors)?;
        }
        if self.image.is_empty() {
            return Ok(OK);
        }
        let codec = latents.codec(Device::Cpu)?;
        let factor = codec.shape().factor;
        for (i, path) in self.image.iter().enumerate() {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            // As the pictures of a training are.
            let picture = picture::decode(&bytes, MOST_PIXELS)
                .with_context(|| format!("cannot read {} as a picture", path.display()))?;
            let picture = cropped(&picture, factor as u32)
                .with_context(|| format!("{}: at least {factor} pixels are needed on each side", path.display()))?;
            let pixels = pictures::to_tensor(&picture)?;
            let normal = |shape: &[i64]| match self.seed {
                Some(seed) => Stream::new(seed, "latent", &[i as u64]).normal_tensor(shape, Device::Cpu),
                None => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
            };
            let latent = codec.encode(&pixels, &normal)?;
            let decoded = pictures::from_tensor(&codec.decode(&latent)?)?;
            let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            let name = |end: &str| format!("{i:04}-{stem}{end}");
            self.write(&name(".safetensors"), &[("latent".to_owned(), latent.shallow_clone())])?;
            for (end, picture) in [("-latent.png", pictures::channels(&latent)?)]
                .into_iter()
                .chain(decoded.into_iter().map(|d| ("-decoded.png", d)))
            {
                let path = self.out.join(name(end));
                grid::save(&picture, &path)?;
                say(format_args!("{}  {}x{}", path.display(), picture.width(), picture.height()))?;
            }
        }
        Ok(OK)
    }

    fn encodings(&self) -> Result<(TextEncoding, Latents)> {
        if let Some(checkpoint) = &self.checkpoint {
            let moved = Moved {
                autoencoder: self.vae.clone(),
                gemma: self.gemma.clone(),
                modernbert: self.modernbert.clone(),
                clip: self.clip.clone(),
            };
            let opened = Opened::checkpoint(checkpoint, Parameters::Average)?.with_moved(&moved)?;
            for sentence in &opened.conventions {
                watch::aside(sentence);
            }
            return Ok((opened.state.text, opened.state.latents));
        }
        let text = match (&self.gemma, &self.modernbert, &self.clip) {
            (Some(gemma), Some(modernbert), Some(clip)) => TextEncoding::Pretrained(PretrainedText {
                gemma: gemma.clone(),
                modernbert: modernbert.clone(),
                clip: clip.clone(),
                padding: Padding::default(),
            }),
            (None, None, None) => TextEncoding::Hash,
            _ => {
                let words = "--gemma, --modernbert and --clip go together: give all three, or none";
                return Err(Usage(words.to_owned()).into());
            }
        };
        let affine = if self.scale_then_shift { Affine::ScaleThenShift } else { Affine::ShiftThenScale };
        let autoencoder =
            |folder: &PathBuf| Latents::Autoencoder(AutoencoderLatents { folder: folder.clone(), affine });
        Ok((text, self.vae.as_ref().map_or(Latents::Pixels, autoencoder)))
    }

    /// Writes tensors in place of an earlier run's, and says what they are like.
    fn write(&self, name: &str, tensors: &[(String, Tensor)]) -> Result<()> {
        let path = self.out.join(name);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        weights::write(&path, tensors)?;
        for (name, tensor) in tensors {
            let number = |t: Tensor| t.to_kind(Kind::Double).double_value(&[]);
            say(format_args!(
                "{}  {name}  {:?}  mean {:.4}, deviation {:.4}, from {:.4} to {:.4}",
                path.display(),
                tensor.size(),
                number(tensor.mean(Kind::Float)),
                number(tensor.std(false)),
                number(tensor.min()),
                number(tensor.max())
            ))?;
        }
        Ok(())
    }
}

/// The middle of a picture whose sides are multiples of `factor`; `None` when nothing is left.
fn cropped(picture: &RgbImage, factor: u32) -> Option<RgbImage> {
    let (width, height) = (picture.width() / factor * factor, picture.height() / factor * factor);
    let (left, top) = ((picture.width() - width) / 2, (picture.height() - height) / 2);
    (width > 0 && height > 0).then(|| image::imageops::crop_imm(picture, left, top, width, height).to_image())
}
