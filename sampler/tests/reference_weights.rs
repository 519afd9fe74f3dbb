//! Weights of the reference system, opened as they are: the same pictures as from a checkpoint of ours with the same weights.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

use models::autoencoder::Affine;
use models::checkpoint::{self, Checkpoint, CheckpointState};
use models::latents::{AutoencoderLatents, Latents};
use models::mmdit::{Mmdit, MmditConfig, MmditVariant, Positions};
use models::text::{Padding, PretrainedText, TextEncoding};
use models::weights;
use sampler::guidance::Guidance;
use sampler::opened::{Companions, Moved, Opened, Parameters};
use sampler::recipe::Recipe;
use sampler::solver::Solver;
use sampler::text_to_image::{Loading, Picture, Settings, TextToImage, unwatched};
use tch::Device;

#[path = "../../models/tests/models/few_words.rs"]
mod few_words;

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/hf").join(name)
}

/// A small text encoder with a tokenizer.
fn encoder(root: &Path, name: &str, start: i64, end: i64) -> PathBuf {
    let folder = root.join(name);
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(published(name).join(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("tokenizer.json"), few_words::tokenizer(start, end).to_string()).unwrap();
    folder
}

/// The small encoders' sizes.
fn model() -> MmditConfig {
    MmditConfig {
        channels: 16,
        patch_size: 2,
        width: 32,
        blocks: 2,
        heads: 2,
        hidden: 128,
        text_streams: 2,
        text_width: 48,
        pooled_width: 24,
        zero_gates: false,
        variant: MmditVariant::default(),
    }
}

/// Of the small autoencoder.
fn latents(affine: Affine) -> Latents {
    Latents::Autoencoder(AutoencoderLatents { folder: published("autoencoder_kl"), affine })
}

fn companions(root: &Path) -> Companions {
    let text = PretrainedText {
        gemma: encoder(root, "gemma2", 1, 2),
        modernbert: encoder(root, "modernbert", 1, 2),
        clip: encoder(root, "clip", 298, 299),
        padding: Padding::Right,
    };
    Companions { autoencoder: published("autoencoder_kl"), text, parameters: None }
}

fn settings() -> Settings {
    let guidance = Guidance::of(3.0);
    Settings { width: 64, height: 32, steps: 2, guidance, sampler: Solver::Euler, shift: 1.0 }
}

fn picture(opened: Opened) -> Vec<u8> {
    let model = TextToImage::load(opened, Loading::on(Device::Cpu)).unwrap();
    let wanted = [Picture { prompt: "a fox on blue".to_owned(), seed: 5, ..Picture::default() }];
    let pictures = model.generate(&wanted, &settings(), 1, &mut unwatched).unwrap();
    pictures.into_iter().flat_map(image::RgbImage::into_raw).collect()
}

/// What a picture is made with.
fn recipe(opened: Opened) -> Recipe {
    let loading = Loading { low_memory: true, ..Loading::on(Device::Cpu) };
    TextToImage::load(opened, loading).unwrap().recipe(&Picture::default(), &settings())
}

#[test]
fn weights_of_the_reference_make_the_pictures_of_a_checkpoint_with_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    let companions = companions(root.path());
    let parameters = Mmdit::initialise(&model(), 3, Device::Cpu);
    // As the reference leaves them: the average of the latest step counts.
    let files = root.path().join("reference");
    fs::create_dir(&files).unwrap();
    let average = files.join("model_ema_20s.pkl");
    weights::write_torch(&average, &parameters.state_dict()).unwrap();
    weights::write_torch(&files.join("model_20s.pkl"), &Mmdit::initialise(&model(), 4, Device::Cpu).state_dict())
        .unwrap();
    let described = model().to_reference(256, &latents(Affine::ScaleThenShift)).unwrap();
    for step in ["20s", "3s"] {
        fs::write(files.join(format!("model_params_{step}.json")), described.to_string()).unwrap();
    }
    // And a checkpoint of ours.
    let state = CheckpointState {
        format: checkpoint::FORMAT,
        step: 20,
        model: model(),
        latents: latents(Affine::ScaleThenShift),
        text: TextEncoding::Pretrained(companions.text.clone()),
        max_resolution: 256,
        training: serde_json::Value::Null,
        index: None,
        encoders: None,
        version: String::new(),
    };
    let own = root.path().join("own");
    Checkpoint::write(&own, &state, &[(checkpoint::EMA, parameters.state_dict())]).unwrap();
    let expected = picture(Opened::checkpoint(&own, Parameters::Average).unwrap());

    // Its models may lie elsewhere by now; others are told, and such as it has none of are refused.
    let elsewhere = root.path().join("elsewhere");
    fs::rename(&companions.text.gemma, &elsewhere).unwrap();
    let again = || Opened::checkpoint(&own, Parameters::Average).unwrap();
    assert!(TextToImage::load(again(), Loading::on(Device::Cpu)).is_err());
    let moved = Moved { gemma: Some(elsewhere.clone()), ..Moved::default() };
    assert!(picture(again().with_moved(&moved).unwrap()) == expected);
    let mut known = again();
    known.state.encoders = Some(serde_json::json!({"text": {"gemma": "another"}}));
    assert!(known.with_moved(&moved).unwrap().conventions.concat().contains("text encoders are not the same"));
    let mut of_pixels = again();
    of_pixels.state.latents = Latents::Pixels;
    let unused = Moved { autoencoder: Some(elsewhere.clone()), ..Moved::default() };
    let refused = of_pixels.with_moved(&unused).unwrap_err().to_string();
    assert!(refused.contains("trained on pixels"), "{refused}");
    fs::rename(&elsewhere, &companions.text.gemma).unwrap();

    assert!(Opened::is_reference(&files) && Opened::is_reference(&average) && !Opened::is_reference(&own));
    for path in [&files, &average] {
        let opened = Opened::reference(path, Parameters::Average, &companions).unwrap();
        assert_eq!((opened.state.step, opened.state.max_resolution), (20, 256));
        let said = opened.conventions.join(" ");
        for words in ["model_ema_20s.pkl", "model_params_20s.json", "scaled, then shifted", "1 + w", "padded behind"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(picture(opened) == expected, "{}", path.display());
    }
    let raw = Opened::reference(&files, Parameters::Raw, &companions).unwrap();
    assert!(raw.parameters.ends_with("model_20s.pkl") && picture(raw) != expected);

    // The reference's own padding is another text to the model, and is said.
    let text = PretrainedText { padding: Padding::ReferenceInference, ..companions.text.clone() };
    let padded = Opened::reference(&files, Parameters::Average, &Companions { text, ..companions.clone() }).unwrap();
    assert!(padded.conventions.join(" ").contains("as in its inference"));
    let usual = recipe(Opened::reference(&files, Parameters::Average, &companions).unwrap());
    let differences = recipe(padded.clone()).differences(&usual);
    assert!(differences.len() == 1 && differences[0].contains("padded otherwise"), "{differences:?}");
    assert!(picture(padded) != expected);
}

#[test]
fn weights_that_were_converted_are_used_as_they_were_trained() {
    let root = tempfile::tempdir().unwrap();
    let companions = companions(root.path());
    let weights = root.path().join("mine.safetensors");
    weights::write(&weights, &Mmdit::initialise(&model(), 0, Device::Cpu).state_dict()).unwrap();
    for (affine, words) in
        [(Affine::ShiftThenScale, "shifted, then scaled"), (Affine::ScaleThenShift, "scaled, then shifted")]
    {
        let described = model().to_reference(512, &latents(affine)).unwrap();
        // Its own loader takes no key that it does not know, and needs this one.
        assert_eq!(described.get("latent_affine").is_some(), affine == Affine::ShiftThenScale);
        assert_eq!(described["device"], "cpu");
        fs::write(root.path().join("mine.model_params.json"), described.to_string()).unwrap();
        let opened = Opened::reference(&weights, Parameters::Average, &companions).unwrap();
        assert!(opened.conventions.join(" ").contains(words), "{:?}", opened.conventions);
        assert_eq!((opened.state.latents, opened.state.max_resolution), (latents(affine), 512));
    }
    let variant = MmditVariant { positions: Positions::Rope, position_scale: 0.5, ..MmditVariant::default() };
    let scaled = MmditConfig { variant, ..model() }.to_reference(512, &Latents::Pixels).unwrap();
    assert_eq!(["max_res_orig", "max_res"].map(|key| scaled[key].as_f64()), [Some(256.0), Some(512.0)]);
}

#[test]
fn what_does_not_belong_to_weights_of_the_reference_is_refused_in_words() {
    let root = tempfile::tempdir().unwrap();
    let companions = companions(root.path());
    let refused =
        |path: &Path, with: &Companions| Opened::reference(path, Parameters::Average, with).unwrap_err().to_string();
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(!Opened::is_reference(&empty));
    assert!(refused(&empty, &companions).contains("model_params_"));
    // Of other encoders.
    let narrow = MmditConfig { text_width: 40, ..model() };
    let weights = root.path().join("model_ema_1s.pkl");
    weights::write_torch(&weights, &Mmdit::initialise(&narrow, 0, Device::Cpu).state_dict()).unwrap();
    let missing = refused(&weights, &companions);
    assert!(missing.contains("model_params_1s.json"), "{missing}");
    let described = root.path().join("described.json");
    let parameters = narrow.to_reference(256, &latents(Affine::ScaleThenShift)).unwrap();
    fs::write(&described, parameters.to_string()).unwrap();
    let misfit = refused(&weights, &Companions { parameters: Some(described), ..companions });
    assert!(misfit.contains("the width of the texts' tokens = 48") && misfit.contains("trained with 40"), "{misfit}");
}
