//! Weights from elsewhere: `convert` and `encode`.

use std::path::{Path, PathBuf};

use crate::support::{bucketed, checkpoint, folder, run, text};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures").join(path)
}

fn convert(arguments: &[&Path]) -> std::process::Output {
    let arguments: Vec<String> = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    run(&[&["convert"], arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat())
}

#[test]
fn a_published_checkpoint_becomes_safetensors_and_comes_back_unchanged() {
    let folder = folder();
    let pickle = fixture("mmdit/rope2d_swiglu/model_ema_7s.pkl");
    let safetensors = folder.path().join("model_ema_7s.safetensors");
    let there = convert(&[&pickle, &safetensors]);
    assert!(there.status.success(), "{}", text(&there.stderr));
    let listed = text(&there.stdout);
    for part in [
        "blocks.0.attn.rotary_emb.freqs",
        "F32",
        "[32, 16, 2, 2]",
        "Exactly the tensors of its model: width 32, 2 blocks",
    ] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    assert!(folder.path().join("model_params_7s.json").exists());

    let back = folder.path().join("model_ema_8s.pkl");
    let and_back = convert(&[&safetensors, &back]);
    assert!(and_back.status.success(), "{}", text(&and_back.stderr));
    let without_paths = |output: &[u8]| -> Vec<String> {
        text(output).lines().filter(|line| !line.starts_with("wrote")).map(str::to_owned).collect()
    };
    assert_eq!(without_paths(&there.stdout), without_paths(&and_back.stdout));
    assert_eq!(without_paths(&convert(&[&back]).stdout), without_paths(&there.stdout));

    // Nothing that is there is written over.
    let again = convert(&[&pickle, &safetensors]);
    assert!(!again.status.success() && text(&again.stderr).contains("model_ema_7s.safetensors"));
}

#[test]
fn the_references_own_configuration_is_never_written_over() {
    let folder = folder();
    for name in ["model_ema_7s.pkl", "model_params_7s.json"] {
        std::fs::copy(fixture("mmdit/rope2d_swiglu").join(name), folder.path().join(name)).unwrap();
    }
    let json = folder.path().join("model_params_7s.json");
    let before = std::fs::read_to_string(&json).unwrap();
    let beside = folder.path().join("model_ema_7s.safetensors");
    let output = convert(&[&folder.path().join("model_ema_7s.pkl"), &beside]);
    assert!(output.status.success() && text(&output.stdout).contains("kept"), "{}", text(&output.stderr));
    assert_eq!(std::fs::read_to_string(&json).unwrap(), before);
    // Beside other weights goes a copy, with everything that it says.
    let elsewhere = folder.path().join("model_ema_8s.pt");
    assert!(convert(&[&folder.path().join("model_ema_7s.pkl"), &elsewhere]).status.success());
    assert_eq!(std::fs::read_to_string(folder.path().join("model_params_8s.json")).unwrap(), before);
}

#[test]
fn a_table_of_absolute_positions_is_written_for_pytorch_once() {
    let folder = folder();
    let weights = fixture("mmdit/absolute/weights.safetensors");
    let json = fixture("mmdit/absolute/model_params_7s.json").to_string_lossy().into_owned();
    let (first, second) = (folder.path().join("model_ema_1s.pkl"), folder.path().join("model_ema_2s.pkl"));
    let output = convert(&[&weights, &first, Path::new("--model"), Path::new(&json)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&convert(&[&first, &second]).stdout);
    let tables: Vec<&str> = listed.lines().filter(|line| line.starts_with("pos_enc.pos_embed ")).collect();
    assert!(tables.len() == 1 && tables[0].ends_with("[1, 65536, 32]"), "{listed}");
    let sizes = [&first, &second].map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(sizes[0], sizes[1], "the table is not there twice");
}

#[test]
fn weights_that_are_not_their_models_are_listed_and_nothing_is_written() {
    let folder = folder();
    let json = folder.path().join("model_params_1s.json");
    let original = std::fs::read_to_string(fixture("mmdit/rope2d_swiglu/model_params_7s.json")).unwrap();
    std::fs::write(&json, original.replace("\"hidden_scale\": 4.0", "\"hidden_scale\": 3.0")).unwrap();
    let out = folder.path().join("out.safetensors");
    let model = json.to_string_lossy().into_owned();
    let output =
        convert(&[&fixture("mmdit/rope2d_swiglu/model_ema_7s.pkl"), &out, Path::new("--model"), Path::new(&model)]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in ["misshapen   blocks.0.MLP_x.MLP.w12.weight: [256, 32] in the file, [192, 32]", "blocks.1.MLP_x"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!out.exists());
    let output = convert(&[&fixture("mmdit/rope2d_swiglu/weights.safetensors"), &folder.path().join("out.onnx")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains(".safetensors"), "{}", text(&output.stderr));
}

#[test]
fn a_converted_checkpoint_says_how_large_its_pictures_were_and_how_their_latents_are_scaled() {
    let folder = folder();
    let checkpoint = folder.path().join("step-000000003");
    std::fs::create_dir(&checkpoint).unwrap();
    std::fs::copy(fixture("mmdit/rope2d_swiglu/weights.safetensors"), checkpoint.join("ema.safetensors")).unwrap();
    let state = serde_json::json!({
        "format": 1, "step": 3, "max_resolution": 512, "training": null, "version": "test", "text": "hash",
        "latents": { "autoencoder": { "folder": "vae", "affine": "shift_then_scale" } },
        "model": { "channels": 16, "patch_size": 2, "width": 32, "blocks": 2, "heads": 2, "hidden": 128, "text_streams": 2,
            "text_width": 24, "pooled_width": 12, "zero_gates": false },
    });
    std::fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    let (converted, json) = (folder.path().join("mine.safetensors"), folder.path().join("mine.model_params.json"));
    let output = convert(&[&checkpoint, &converted]);
    assert!(output.status.success() && !text(&output.stderr).contains("warning"), "{}", text(&output.stderr));
    let described: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(described["max_res"], 512.0);
    assert_eq!(described["latent_affine"], "shift_then_scale");

    // What an earlier conversion left is kept, and told where it is something else.
    std::fs::remove_file(&converted).unwrap();
    std::fs::write(&json, "{}").unwrap();
    let again = convert(&[&checkpoint, &converted]);
    assert!(again.status.success() && text(&again.stderr).contains("something else"), "{}", text(&again.stderr));
    assert_eq!(std::fs::read_to_string(&json).unwrap(), "{}");

    // Nothing is read where nothing can be written.
    let lost = convert(&[&checkpoint, &folder.path().join("nowhere/mine.safetensors")]);
    assert!(lost.status.code() == Some(2) && lost.stdout.is_empty(), "{}", text(&lost.stdout));
    assert!(text(&lost.stderr).contains("nowhere is no folder"), "{}", text(&lost.stderr));
}

#[test]
fn pictures_are_encoded_upright_and_on_white() {
    let folder = folder();
    let clear = folder.path().join("clear.png");
    image::RgbaImage::new(8, 4).save(&clear).unwrap();
    let mut plain = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(16, 8).write_to(&mut plain, image::ImageFormat::Jpeg).unwrap();
    let plain = plain.into_inner();
    // By its EXIF it lies on its side.
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let marker = [0xff, 0xe1, 0, (2 + exif.len()) as u8];
    let turned = folder.path().join("turned.jpg");
    std::fs::write(&turned, [&plain[..2], &marker, exif, &plain[2..]].concat()).unwrap();
    let out = folder.path().join("out");
    let [clear, turned, out_text] = [&clear, &turned, &out].map(|path| path.to_string_lossy());
    let output = run(&["encode", "--image", &clear, "--image", &turned, "--out", &out_text]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let decoded = |name: &str| image::open(out.join(name)).unwrap().into_rgb8();
    assert_eq!(decoded("0000-clear-decoded.png"), image::RgbImage::from_pixel(8, 4, image::Rgb([255; 3])));
    assert_eq!(decoded("0001-turned-decoded.png").dimensions(), (8, 16));
}

#[test]
fn prompts_and_pictures_can_be_encoded_and_looked_at() {
    let folder = folder();
    let picture = image::RgbImage::from_fn(37, 20, |x, y| image::Rgb([x as u8 * 6, y as u8 * 12, 90]));
    let path = folder.path().join("a picture.png");
    picture.save(&path).unwrap();
    let out = folder.path().join("out");
    let (image, out_text) = (path.to_string_lossy(), out.to_string_lossy());
    for _ in 0..2 {
        let output = run(&["encode", "--prompt", "a fox", "--prompt", "", "--image", &image, "--out", &out_text]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        assert!(said.contains("tokens.0  [2, 16, 128]") && said.contains("latent  [1, 12, 10, 18]"), "{said}");
    }
    let decoded = image::open(out.join("0000-a picture-decoded.png")).unwrap().into_rgb8();
    let middle = image::imageops::crop_imm(&picture, 0, 0, 36, 20).to_image();
    assert_eq!(decoded, middle);
    assert!(out.join("0000-a picture-latent.png").exists() && out.join("prompts.safetensors").exists());

    assert_eq!(run(&["encode"]).status.code(), Some(2));
    let output = run(&["encode", "--prompt", "x", "--gemma", "nowhere"]);
    assert_eq!(output.status.code(), Some(2), "three models are needed, not one");
    let output = run(&["encode", "--prompt", "x", "--gemma", "no", "--modernbert", "no", "--clip", "no"]);
    assert!(
        output.status.code() == Some(1) && text(&output.stderr).contains("no/config.json"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn encoders_of_a_checkpoint_may_lie_elsewhere_by_now() {
    let folder = folder();
    let (autoencoder, moved) = (folder.path().join("autoencoder"), folder.path().join("moved"));
    std::fs::create_dir(&autoencoder).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(fixture("hf/autoencoder_kl").join(file), autoencoder.join(file)).unwrap();
    }
    let stages = format!(
        "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n[stage.train]\nuses = \"train\"\nfrom = \"index\"\n\
         latents = {{ autoencoder = {{ folder = \"{}\" }} }}\ntext = \"hash\"\npatch_size = 1\nsteps = 1\nwidth = 32\nheads = 2\n\
         blocks = 1\nbatch_size = 4\nwarmup_steps = 0\ndevice = \"cpu\"\n",
        autoencoder.display()
    );
    let manifest = bucketed(folder.path(), &[(32, 32); 8], &stages);
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    std::fs::rename(&autoencoder, &moved).unwrap();

    let paths = [
        checkpoint(&folder.path().join("work")),
        folder.path().join("pictures/00.png"),
        folder.path().join("out"),
        moved,
    ];
    let [checkpoint, picture, out, moved] = paths.map(|path| path.to_string_lossy().into_owned());
    let usual = ["encode", "--checkpoint", &checkpoint, "--image", &picture, "--out", &out];
    let lost = run(&usual);
    assert_eq!(lost.status.code(), Some(1));
    assert!(text(&lost.stderr).contains("autoencoder"), "{}", text(&lost.stderr));
    let found = run(&[&usual[..], &["--vae", &moved]].concat());
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert!(text(&found.stdout).contains("  latent  [1, "), "{}", text(&found.stdout));
    assert!(!text(&found.stderr).contains("not the same files"), "{}", text(&found.stderr));
    // It says itself how its latents are scaled, and never had a text encoder.
    let scaled = run(&[&usual[..], &["--vae", &moved, "--scale-then-shift"]].concat());
    assert_eq!(scaled.status.code(), Some(2), "{}", text(&scaled.stderr));
    let foreign = run(&[&usual[..], &["--gemma", "nowhere"]].concat());
    assert!(text(&foreign.stderr).contains("no such text encoder"), "{}", text(&foreign.stderr));
}
