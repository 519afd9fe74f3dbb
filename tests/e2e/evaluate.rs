//! `evaluate`: distances to real pictures and scores of captions, by a small CLIP; the same after an interruption.

use std::fs;
use std::path::{Path, PathBuf};

use evaluation::FeatureStore;
use image::{Rgb, RgbImage};
use serde_json::Value;
use tch::Tensor;

use crate::support::{bucketed, folder, run, text, trained};

#[path = "../../models/tests/models/few_words.rs"]
mod few_words;

/// A CLIP of 24 features that was never trained.
fn clip(root: &Path) -> String {
    let folder = root.join("clip");
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/hf/clip");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(published.join(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("tokenizer.json"), few_words::tokenizer(298, 299).to_string()).unwrap();
    folder.to_string_lossy().into_owned()
}

/// Pictures of which each has its own pattern, of the given strength.
fn pictures(folder: &Path, count: u32, strength: u32) -> String {
    fs::create_dir(folder).unwrap();
    for n in 0..count {
        let value = |x: u32, y: u32, c: u32| ((x * (n % 7 + 1) + y * (n % 5 + c) + n * 3) * strength % 256) as u8;
        let picture = RgbImage::from_fn(40, 32, |x, y| Rgb([value(x, y, 1), value(x, y, 2), value(y, x, 3)]));
        picture.save(folder.join(format!("{n:03}.png"))).unwrap();
        fs::write(folder.join(format!("{n:03}.txt")), "a fox on blue\n").unwrap();
    }
    folder.to_string_lossy().into_owned()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("evaluation.json")).unwrap()).unwrap()
}

fn value(report: &Value, metric: &str) -> f64 {
    let metrics = report["metrics"].as_array().unwrap();
    let found = metrics.iter().find(|found| found["metric"].as_str().unwrap().starts_with(metric));
    found.unwrap_or_else(|| panic!("no {metric} in {report}"))["value"].as_f64().unwrap()
}

#[test]
fn pictures_in_folders_are_compared_and_what_was_seen_is_kept() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let clip = clip(folder.path());
    let (real, other) = (pictures(&at("real"), 70, 5), pictures(&at("other"), 70, 1));
    let evaluate = |images: &str, reference: &str, out: &str, more: &[&str]| {
        let out = at(out).to_string_lossy().into_owned();
        let usual = ["evaluate", "--images", images, "--clip-score", &clip, "--reference", reference, "--out", &out];
        run(&[&usual[..], &["--subset-size", "30"], more].concat())
    };
    let same = evaluate(&real, &real, "same", &[]);
    assert!(same.status.success(), "{}", text(&same.stderr));
    let found = report(&at("same"));
    assert!(value(&found, "Fréchet distance").abs() < 1e-6 && value(&found, "kernel distance") < 0.0, "{found}");
    assert_eq!((value(&found, "precision"), value(&found, "recall")), (1.0, 1.0));
    assert_eq!((&found["generated"], &found["reference"]), (&70.into(), &70.into()));
    // By this network, no number may have the name of one by Inception.
    assert!(!text(&same.stdout).contains("FID") && text(&same.stdout).contains("CLIP image embedding in float32"));
    assert!((0.0..=100.0).contains(&value(&found, "CLIP score")));

    let apart = evaluate(&other, &real, "apart", &[]);
    assert!(apart.status.success(), "{}", text(&apart.stderr));
    let found = report(&at("apart"));
    assert!(value(&found, "Fréchet distance") > 1e-3 && value(&found, "kernel distance") > 1e-4, "{found}");
    assert!(value(&found, "precision") < 1.0, "{found}");
    let interval = &found["metrics"][0]["interval"];
    let [low, high] = [0, 1].map(|end| interval[end].as_f64().unwrap());
    assert!((low..=high).contains(&value(&found, "Fréchet distance")), "{found}");

    // Features that were kept are a reference too, and need no pictures any more.
    let kept = at("apart/reference").to_string_lossy().into_owned();
    fs::remove_dir_all(at("real")).unwrap();
    let again = evaluate(&other, &kept, "again", &[]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(report(&at("again"))["metrics"], found["metrics"]);
    // Their mean and covariance alone, as others publish them, make the same Fréchet distance and nothing else.
    let statistics = FeatureStore::read(kept.as_ref()).unwrap().statistics().unwrap();
    let arrays = [("mu", statistics.mean().unwrap()), ("sigma", statistics.covariance().unwrap())];
    let [mean, covariance] = arrays.map(|(name, values)| (name, Tensor::from_slice(&values)));
    let covariance = (covariance.0, covariance.1.view([24, 24]));
    Tensor::write_npz(&[mean, covariance], at("published.npz")).unwrap();
    let published = evaluate(&other, &at("published.npz").to_string_lossy(), "published", &[]);
    assert!(published.status.success(), "{}", text(&published.stderr));
    let of_moments = report(&at("published"));
    let (one, other_one) = (value(&of_moments, "Fréchet distance"), value(&found, "Fréchet distance"));
    assert!((one - other_one).abs() <= 1e-9 * one.abs(), "{one} {other_one}");
    assert_eq!((of_moments["refused"].as_array().unwrap().len(), &of_moments["reference"]), (3, &Value::Null));
    // A mean and a covariance of another network are refused before a picture is looked at.
    let arrays = [("mu", Tensor::from_slice(&[0.0; 25])), ("sigma", Tensor::from_slice(&[0.0; 625]).view([25, 25]))];
    Tensor::write_npz(&arrays, at("wider.npz")).unwrap();
    let wider = evaluate(&other, &at("wider.npz").to_string_lossy(), "wider", &[]);
    assert_eq!(wider.status.code(), Some(2), "{}", text(&wider.stderr));
    assert!(text(&wider.stderr).contains("shape [25]") && !at("wider/generated").exists(), "{}", text(&wider.stderr));
    // Scores of another CLIP are never taken for this one's; and a reference of its features is refused at once, too.
    fs::write(Path::new(&clip).join("generation_config.json"), "{}").unwrap();
    let rescored = evaluate(&other, &other, "again", &[]);
    assert_eq!(rescored.status.code(), Some(1), "{}", text(&rescored.stdout));
    let misfit = evaluate(&other, &kept, "misfit", &[]);
    let said = text(&misfit.stderr);
    assert_eq!((misfit.status.code(), said.matches("CLIP image embedding in float32 (weights ").count()), (Some(2), 2));
    assert!(!at("misfit/generated").exists(), "{said}");
    fs::remove_file(Path::new(&clip).join("generation_config.json")).unwrap();
    // What an interruption left is gone on with: the blocks that are there stay as they are.
    let blocks = || {
        let names = fs::read_dir(at("again/generated")).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<PathBuf> = names.filter(|path| path.to_string_lossy().contains("block-")).collect();
        names.sort();
        names
    };
    let first = blocks()[0].clone();
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    fs::remove_file(&blocks()[1]).unwrap();
    let description = fs::read_to_string(at("again/generated/features.json")).unwrap();
    fs::write(at("again/generated/features.json"), description.replace("\"complete\": true", "\"complete\": false"))
        .unwrap();
    let part = evaluate(&other, &at("again/generated").to_string_lossy(), "part", &[]);
    assert_eq!(part.status.code(), Some(2));
    assert!(text(&part.stderr).contains("a part of its pictures"), "{}", text(&part.stderr));
    let resumed = evaluate(&other, &kept, "again", &[]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(report(&at("again"))["metrics"], found["metrics"]);
    assert_eq!((blocks().len(), fs::metadata(&first).unwrap().modified().unwrap()), (2, before));

    // Other pictures must not get mixed with them.
    fs::write(at("other/more.txt"), "").unwrap();
    fs::remove_file(at("other/000.png")).unwrap();
    let mixed = evaluate(&other, &kept, "again", &[]);
    assert_eq!(mixed.status.code(), Some(1));
    assert!(text(&mixed.stderr).contains("choose another folder"), "{}", text(&mixed.stderr));
    // Too few pictures: no number, and why.
    let few = evaluate(&other, &kept, "few", &["--count", "3"]);
    assert!(few.status.success(), "a CLIP score there is: {}", text(&few.stderr));
    let found = report(&at("few"));
    let reasons: Vec<&str> =
        found["refused"].as_array().unwrap().iter().map(|refused| refused["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.len(), 4, "{found}");
    assert!(reasons[0].contains("there are 3 generated and 70 reference samples"), "{reasons:?}");
    // A damaged block is refused by its name.
    let block = at("apart/reference/block-00000000.safetensors");
    let half = fs::read(&block).unwrap();
    fs::write(&block, &half[..half.len() / 2]).unwrap();
    let damaged = evaluate(&other, &kept, "damaged", &[]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stderr).contains("block-00000000"), "{}", text(&damaged.stderr));
}

/// Of one picture nobody knows what it shows, then of none: that there is a score of the other alone, or none, is said.
#[test]
fn a_score_that_was_asked_for_does_not_vanish_without_a_word() {
    let folder = folder();
    let (clip, pictures) = (clip(folder.path()), pictures(&folder.path().join("pictures"), 2, 5));
    let evaluate = |out: &str| {
        let out = folder.path().join(out);
        let to = out.to_string_lossy().into_owned();
        (run(&["evaluate", "--images", &pictures, "--clip-score", &clip, "--out", &to]), out)
    };
    fs::remove_file(Path::new(&pictures).join("001.txt")).unwrap();
    let (evaluated, out) = evaluate("some");
    assert!(evaluated.status.success(), "{}", text(&evaluated.stderr));
    let found = report(&out);
    let about = found["metrics"][0]["about"].as_str().unwrap();
    assert!(about.contains("1 of 2 pictures have a caption: each needs one"), "{found}");

    fs::remove_file(Path::new(&pictures).join("000.txt")).unwrap();
    let (evaluated, out) = evaluate("none");
    let said = text(&evaluated.stdout);
    assert_eq!(evaluated.status.code(), Some(1), "{said}{}", text(&evaluated.stderr));
    let words = "none of the 2 pictures has a caption: each needs one, in a .txt of its name or in its PNG";
    assert!(said.contains("CLIP score") && said.contains(words), "{said}");
    let found = report(&out);
    let refused = &found["refused"];
    assert_eq!((refused.as_array().unwrap().len(), &refused[0]["metric"]), (1, &"CLIP score".into()));
    assert!(refused[0]["reason"].as_str().unwrap().starts_with(words), "{refused}");
}

/// Pictures that are there are looked at on a device; what says how others are made, or judged, is refused in place of ignored.
#[test]
fn what_says_nothing_about_pictures_in_folders_is_refused() {
    let folder = folder();
    let pictures = pictures(&folder.path().join("pictures"), 2, 5);
    let usual = ["evaluate", "--images", &pictures, "--inception", "nowhere.pth", "--reference", &pictures];
    let opened = run(&[&usual[..], &["--device", "cpu"]].concat());
    assert_eq!(opened.status.code(), Some(1));
    assert!(text(&opened.stderr).contains("nowhere.pth"), "{}", text(&opened.stderr));
    for more in [
        ["--steps", "3"],
        ["--size", "64"],
        ["--guidance", "2"],
        ["--precision", "float32"],
        ["--prompts", "prompts.txt"],
        ["--checkpoint", "nowhere"],
        ["--uneven", "3"],
        ["--batch", "2"],
        // What no number can be made with, before the networks are opened.
        ["--resamples", "39"],
        ["--subset-size", "1"],
    ] {
        let refused = run(&[&usual[..], &more].concat());
        assert_eq!(refused.status.code(), Some(2), "{more:?}: {}", text(&refused.stderr));
    }
    for more in [["--out", "nowhere"], ["--resamples", "3"], ["--images", "nowhere"]] {
        let refused = run(&[&["evaluate", "--checkpoint", "nowhere", "--colors"][..], &more].concat());
        assert_eq!(refused.status.code(), Some(2), "{more:?}: {}", text(&refused.stderr));
    }
}

#[test]
fn a_checkpoints_pictures_are_measured_by_prompts_or_by_the_captions_of_an_index() {
    let (folder, checkpoint) = trained();
    let at = |name: &str| folder.path().join(name);
    let clip = clip(folder.path());
    let prompts = at("prompts.txt");
    fs::write(&prompts, "a fox\na fox on blue\n").unwrap();
    let (prompts, out) = (prompts.to_string_lossy().into_owned(), at("out").to_string_lossy().into_owned());
    let usual = ["evaluate", "--checkpoint", &checkpoint, "--clip-score", &clip, "--steps", "2"];
    let of_prompts = ["--prompts", &prompts, "--count", "5", "--batch", "2", "--out", &out];
    let made = run(&[&usual[..], &of_prompts].concat());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let found = report(&at("out"));
    assert_eq!((&found["generated"], &found["reference"]), (&5.into(), &Value::Null));
    assert!(value(&found, "CLIP score") >= 0.0);
    // Pictures of another precision are others.
    let other = run(&[&usual[..], &of_prompts, &["--precision", "bfloat16"]].concat());
    assert_eq!(other.status.code(), Some(1), "{}", text(&other.stdout));
    assert!(text(&other.stderr).contains("choose another folder"), "{}", text(&other.stderr));

    let mut index = fs::read_dir(at("work/stages/index")).unwrap().map(|entry| entry.unwrap().path());
    let index = index.find(|path| path.extension().is_some_and(|ending| ending == "parquet")).unwrap();
    let (index, out) = (index.to_string_lossy().into_owned(), at("captions").to_string_lossy().into_owned());
    let of_captions =
        run(&[&usual[..], &["--reference", &index, "--count", "7", "--subset-size", "5", "--out", &out]].concat());
    assert!(of_captions.status.success(), "{}", text(&of_captions.stderr));
    let found = report(&at("captions"));
    assert_eq!((&found["generated"], &found["reference"]), (&7.into(), &7.into()));
    assert!(value(&found, "kernel distance").is_finite() && value(&found, "recall") <= 1.0);
    assert!(found["refused"][0]["reason"].as_str().unwrap().contains("24 dimensions"), "{found}");
    // No picture twice: of eight there are no eight besides those that are looked at.
    let many = at("many").to_string_lossy().into_owned();
    let many = run(&[&usual[..], &["--reference", &index, "--count", "8", "--out", &many]].concat());
    assert_eq!(many.status.code(), Some(2));
    assert!(text(&many.stderr).contains("holds 8 pictures"), "{}", text(&many.stderr));

    for (arguments, words) in [
        (vec!["evaluate", "--checkpoint", &checkpoint], "nothing to measure by"),
        (vec!["evaluate", "--clip-score", &clip, "--prompts", &prompts], "give --checkpoint or --images"),
        (usual.to_vec(), "no prompts"),
        (vec!["evaluate", "--checkpoint", &checkpoint, "--inception", "x.pth"], "give a reference"),
        (vec!["evaluate", "--checkpoint", &checkpoint, "--padding", "right", "--colors"], "a checkpoint says itself"),
    ] {
        let refused = run(&arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(words), "{}", text(&refused.stderr));
    }
}

#[test]
fn pictures_that_sample_made_are_scored_without_its_sheet_and_its_animations() {
    let (folder, checkpoint) = trained();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (clip, samples, out) = (clip(folder.path()), at("samples"), at("out"));
    let made = ["sample", "--checkpoint", &checkpoint, "--grid", "--apng", "--out", &samples, "--steps", "2"];
    let sampled = run(&[&made[..], &["--prompt", "a fox", "--prompt", "a fox on blue"]].concat());
    assert!(sampled.status.success(), "{}", text(&sampled.stderr));
    for beside in ["grid.png", "0000-steps.png", "0001-steps.png"] {
        assert!(Path::new(&samples).join(beside).exists(), "{beside}");
    }
    let scored = run(&["evaluate", "--images", &samples, "--clip-score", &clip, "--out", &out]);
    assert!(scored.status.success(), "{}", text(&scored.stderr));
    let found = report(out.as_ref());
    assert_eq!(found["generated"], 2);
    assert!(!found["metrics"][0]["about"].as_str().unwrap().contains("caption"), "{found}");
}

#[test]
fn evaluate_is_a_stage_whose_numbers_are_in_the_report() {
    let folder = folder();
    let clip = clip(folder.path());
    let stages = format!(
        "[stage.index]\nuses = \"index\"\nfrom = \"bucket\"\n[stage.train]\nuses = \"train\"\nfrom = \"index\"\nsteps = 2\n\
         width = 32\nheads = 2\nblocks = 1\nbatch_size = 4\nwarmup_steps = 0\ndevice = \"cpu\"\n[stage.quality]\n\
         uses = \"evaluate\"\nfrom = \"train\"\nclip_score = \"{clip}\"\nprompts = [\"a fox\", \"a fox on blue\"]\ncount = 4\nsteps = 2\n"
    );
    let manifest = bucketed(folder.path(), &[(32, 32); 8], &stages);
    let made = run(&["run", &manifest, "-q"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let written = run(&["report", &manifest]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let report = fs::read_to_string(text(&written.stdout).trim()).unwrap();
    assert!(report.contains("CLIP score") && report.contains("4 pictures; features: CLIP image embedding"));
    // As many pictures by fewer at a time are the same, and so is the same network in another place; another number of pictures is not.
    let plan = |settings: &[&str]| {
        let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
        text(&run(&["plan", &manifest].into_iter().chain(settings).collect::<Vec<_>>()).stdout)
    };
    let fewer = plan(&["stage.quality.batch=1"]);
    assert!(fewer.contains("Nothing to do"), "{fewer}");
    let moved = folder.path().join("moved");
    fs::rename(&clip, &moved).unwrap();
    let moved = format!("stage.quality.clip_score={}", moved.display());
    let same = plan(&[&moved]);
    assert!(same.contains("Nothing to do"), "{same}");
    let more = plan(&[&moved, "stage.quality.count=5"]);
    assert!(more.contains("quality") && !more.contains("Nothing to do"), "{more}");
    // Other numbers of the same pictures need no other pictures.
    let with_others =
        |command: &str| run(&[command, &manifest, "--set", &moved, "--set", "stage.quality.resamples=50"]);
    let is_made = || text(&with_others("plan").stdout).contains("Nothing to do");
    assert!(!is_made());
    let made = with_others("run");
    assert!(made.status.success() && is_made(), "{}", text(&made.stderr));
    let stage = fs::read_dir(folder.path().join("work/stages/quality")).unwrap();
    let features = stage.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("features-"));
    assert_eq!(features.count(), 1);
}
