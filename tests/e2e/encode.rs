//! `encode`: what it makes is what a training would have made itself.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{bucketed, digests, folder, run, text};

/// The last checkpoint of a train stage: the bytes of its weights.
fn weights(workdir: &Path, stage: &str) -> Vec<u8> {
    fs::read(run_folder(workdir, stage).join("step-000000006/model.safetensors")).unwrap()
}

fn run_folder(workdir: &Path, stage: &str) -> std::path::PathBuf {
    let mut entries = fs::read_dir(workdir.join("stages").join(stage)).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("run-")).unwrap()
}

fn losses(workdir: &Path, stage: &str) -> Vec<f64> {
    let records = fs::read_to_string(run_folder(workdir, stage).join("metrics.jsonl")).unwrap();
    records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// Trainings from pictures and from what was encoded of them.
fn stages(models: &str, precision: &str, captions: &str) -> String {
    let train = format!(
        "uses = \"train\"\n{models}\npatch_size = 1\nsteps = 6\nwidth = 32\nheads = 2\nblocks = 2\nbatch_size = 8\nwarmup_steps = 2\n\
         learning_rate = 1e-3\nnull_caption = 0.2\ndevice = \"cpu\"\nlog_every = 1\nvalidation_images = 5\n"
    );
    format!(
        "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n[stage.online]\nfrom = \"index\"\n{train}\
         [stage.encode]\nuses = \"encode\"\nfrom = \"bucket\"\n{models}\nprecision = \"{precision}\"\nbatch = 3\ncaptions = {captions}\n\
         device = \"cpu\"\n[stage.encoded]\nuses = \"index\"\nfrom = \"encode\"\n[stage.cached]\nfrom = \"encoded\"\nencode = \"cached\"\n{train}"
    )
}

fn sizes() -> Vec<(u32, u32)> {
    (0..30).map(|n| if n < 20 { (32, 32) } else { (32, 16) }).collect()
}

#[test]
fn a_training_from_what_was_encoded_comes_to_the_same_bits() {
    for captions in ["[\"caption\"]", "[]"] {
        let folder = folder();
        let models = "latents = \"pixels\"\ntext = \"hash\"";
        let manifest = bucketed(folder.path(), &sizes(), &stages(models, "float32", captions));
        fs::write(folder.path().join("pictures/03.txt"), "").unwrap();
        let made = run(&["run", &manifest, "-q"]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let workdir = folder.path().join("work");
        assert_eq!(losses(&workdir, "online"), losses(&workdir, "cached"), "{captions}");
        assert!(weights(&workdir, "online") == weights(&workdir, "cached"), "{captions}");
        let verified = run(&["verify", &manifest]);
        assert!(verified.status.success(), "{}", text(&verified.stdout));
        let measured = run(&["loader", &manifest, "--stage", "encoded", "--encoded", "--bench", "--batch-size", "4"]);
        assert!(text(&measured.stdout).contains("28 images in 7 batches"), "{}", text(&measured.stdout));

        // Other encoders make it anew, and another training of it; other settings of the training do not.
        let plan = |set: &str| text(&run(&["plan", &manifest, "--set", set]).stdout);
        let words = plan("stage.encode.precision=half");
        assert!(words.contains("precision \"float32\" → \"half\""), "{words}");
        let before = digests(&workdir, "encode");
        assert!(run(&["run", &manifest, "-q", "--set", "stage.cached.seed=3"]).status.success());
        assert_eq!(digests(&workdir, "encode"), before);
    }
}

#[test]
fn latents_are_drawn_anew_from_what_an_autoencoder_said() {
    let folder = folder();
    let autoencoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/autoencoder_kl");
    let models = format!("latents = {{ autoencoder = {{ folder = \"{}\" }} }}\ntext = \"hash\"", autoencoder.display());
    let manifest = bucketed(folder.path(), &sizes(), &stages(&models, "float32", "[\"caption\"]"));
    let workdir = folder.path().join("work");
    for (precision, tolerance) in [("float32", 1e-4), ("half", 2e-2)] {
        let made = run(&["run", &manifest, "-q", "--set", &format!("stage.encode.precision={precision}")]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let latest = losses(&workdir, "cached");
        for (online, cached) in losses(&workdir, "online").iter().zip(&latest) {
            assert!((online - cached).abs() < tolerance, "{precision}: {online} {cached}");
        }
        assert_eq!(latest.len(), 6);
        fs::remove_dir_all(run_folder(&workdir, "cached")).unwrap();
    }
}

/// Sets all of a float32 tensor in a safetensors file to `value`.
fn overwrite(file: &Path, tensor: &str, value: f32) {
    let mut bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[tensor]["dtype"], "F32");
    let [start, end] = [0, 1].map(|i| 8 + length + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize);
    bytes[start..end].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&value.to_le_bytes()));
    fs::write(file, bytes).unwrap();
}

#[test]
fn what_cannot_be_encoded_is_refused_with_its_reason() {
    let folder = folder();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/autoencoder_kl");
    let autoencoder = folder.path().join("autoencoder");
    fs::create_dir(&autoencoder).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(fixture.join(file), autoencoder.join(file)).unwrap();
    }
    // A row that says another size than its image has, and latents of which float16 has no number.
    let stages = format!(
        "[stage.wrong]\nuses = \"sql\"\nfrom = \"bucket\"\nquery = \"SELECT key, image, caption, width, height, \
         CASE WHEN caption LIKE 'picture 3,%' THEN '8x8' ELSE bucket_size END AS bucket_size FROM input\"\n\
         [stage.encode]\nuses = \"encode\"\nfrom = \"wrong\"\nlatents = {{ autoencoder = {{ folder = \"{}\" }} }}\ntext = \"hash\"\n\
         batch = 3\ndevice = \"cpu\"\n",
        autoencoder.display()
    );
    let manifest = bucketed(folder.path(), &sizes(), &stages);
    let dropped = |precision: &str| -> Value {
        let sets = [format!("stage.encode.precision={precision}"), "pipeline.warn_above=1.0".to_owned()];
        let made = run(&["run", &manifest, "-q", "--set", &sets[0], "--set", &sets[1]]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let status = run(&["status", &manifest, "--json", "--set", &sets[0]]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let stages = status["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == "encode").unwrap()["refused"].clone()
    };
    assert_eq!(dropped("half"), serde_json::json!({ "damaged_image": 1 }));
    overwrite(&autoencoder.join("diffusion_pytorch_model.safetensors"), "encoder.conv_out.bias", 1e6);
    assert_eq!(dropped("half"), serde_json::json!({ "damaged_image": 1, "not_finite": 29 }));
    assert_eq!(dropped("float32"), serde_json::json!({ "damaged_image": 1 }));
    let said = run(&["explain", &manifest, "--dropped", "encode", "--set", "stage.encode.precision=float32"]);
    assert!(text(&said.stdout).contains("32x32 pixels are more than 64 allowed"), "{}", text(&said.stdout));
}

#[test]
fn encodings_that_do_not_fit_a_training_are_faults_of_the_manifest() {
    let folder = folder();
    let models = "latents = \"pixels\"\ntext = \"hash\"";
    let manifest = bucketed(folder.path(), &sizes(), &stages(models, "half", "[\"caption\"]"));
    let autoencoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/autoencoder_kl");
    let latents = format!("stage.cached.latents={{ autoencoder = {{ folder = \"{}\" }} }}", autoencoder.display());
    for (sets, expected) in [
        (vec!["stage.cached.encode=online"], "its input was encoded ahead and has no images: set encode = \"cached\""),
        (vec!["stage.online.encode=cached"], "needs the index of an encode stage (uses = \"encode\") as its input"),
        (
            vec!["stage.cached.captions={ recaption = 1.0 }"],
            "its input has no encoded captions of the column recaption; it has those of caption",
        ),
        (vec![latents.as_str()], "its input was encoded to other latents"),
        (
            vec![
                "stage.encode.from=encode2",
                "stage.encode2={ uses = \"encode\", from = \"bucket\", latents = \"pixels\", text = \"hash\" }",
            ],
            "its input is encoded already and has no images",
        ),
        (vec!["stage.encode.batch=0"], "batch = 0: expected at least 1"),
        (vec!["stage.encode.precision=float64"], "unknown choice `float64`, expected `float32` or `half`"),
        (vec!["stage.encode.latents={ autoencoder = { folder = \"nowhere\" } }"], "cannot open nowhere/config.json"),
        (vec!["stage.bucket.patch_size=3"], "buckets come in multiples of 3 pixels, but the latents in multiples of 2"),
    ] {
        let mut arguments = vec!["plan", &manifest];
        for set in &sets {
            arguments.extend(["--set", set]);
        }
        let refused = run(&arguments);
        let words = text(&refused.stderr);
        assert!(refused.status.code() == Some(2) && words.contains(expected), "{sets:?}: {words}");
    }
}
