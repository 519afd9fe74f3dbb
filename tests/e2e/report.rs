//! The report: its figures are those of the sidecars, and a browser opens it without an error and without a network.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{events, folder, small_demo, text};

/// The sidecars of a stage, read as any program could.
fn sidecars(workdir: &Path, stage: &str) -> Vec<Value> {
    let folder = workdir.join("stages").join(stage);
    let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let is_sidecar = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("part-") && name.ends_with(".json")
    };
    paths.filter(is_sidecar).map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

/// What the page says in numbers.
pub(crate) fn figures(page: &str) -> Value {
    let after = page.split_once("id=figures>").or_else(|| page.split_once("id=\"figures\">")).unwrap().1;
    serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap()
}

fn sum(values: &[Value], of: impl Fn(&Value) -> u64) -> u64 {
    values.iter().map(of).sum()
}

fn check_stages(workdir: &Path, figures: &Value) {
    let stages = figures["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["download", "filter", "recaption", "bucket", "index", "train", "samples", "evaluate"]);
    for stage in stages {
        let sidecars = sidecars(workdir, stage["name"].as_str().unwrap());
        assert_eq!(stage["committed"], sidecars.len(), "{stage}");
        assert_eq!(stage["partitions"], sidecars.len(), "{stage}");
        for count in ["rows_in", "rows_out"] {
            assert_eq!(stage[count], sum(&sidecars, |s| s[count].as_u64().unwrap()), "{count} of {stage}");
        }
        for counts in ["dropped", "observed"] {
            let mut expected: BTreeMap<String, u64> = BTreeMap::new();
            for (name, n) in sidecars.iter().filter_map(|s| s[counts].as_object()).flatten() {
                *expected.entry(name.clone()).or_default() += n.as_u64().unwrap();
            }
            assert_eq!(stage[counts], json!(expected), "{counts} of {stage}");
        }
        let bytes = |s: &Value| {
            let files = s["data"].as_array().unwrap().iter().chain(s.get("quarantine"));
            files.map(|file| file["bytes"].as_u64().unwrap()).sum()
        };
        assert_eq!(stage["bytes"], sum(&sidecars, bytes), "{stage}");
        let seconds: f64 = sidecars.iter().map(|s| s["seconds"].as_f64().unwrap()).sum();
        assert!((stage["seconds"].as_f64().unwrap() - seconds).abs() < 1e-6, "{stage}");
    }
}

fn check_figures(workdir: &Path, figures: &Value) {
    check_stages(workdir, figures);
    let totals = &figures["totals"];
    assert_eq!([&totals["rows_in"], &totals["rows_out"], &totals["dropped"]], [200, 187, 13]);

    let steps = figures["flows"][0]["steps"].as_array().unwrap();
    let rows = |name: &str| -> Vec<u64> { steps.iter().map(|step| step[name].as_u64().unwrap()).collect() };
    assert_eq!([rows("rows_in"), rows("rows_out")], [[200, 187, 187, 187], [187, 187, 187, 187]]);
    let branches = steps[0]["branches"].as_array().unwrap();
    assert_eq!((branches.len(), sum(branches, |branch| branch["rows"].as_u64().unwrap())), (7, 13));

    // The index counted the buckets too, by another way.
    let index = sidecars(workdir, "index");
    let table = index[0]["sections"][0]["rows"].as_array().unwrap();
    let counted: BTreeMap<&str, u64> =
        table.iter().map(|row| (row[0].as_str().unwrap(), row[1].as_str().unwrap().parse().unwrap())).collect();
    assert_eq!(figures["buckets"]["kept"], json!(counted));
    let came_in = figures["buckets"]["came_in"].as_object().unwrap();
    assert_eq!(came_in.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 187);

    let histograms = figures["histograms"].as_array().unwrap();
    let ids: Vec<&str> = histograms.iter().map(|h| h["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["longest_side", "aspect_ratio", "letters_of_caption", "letters_of_recaption_short"]);
    for histogram in histograms {
        assert_eq!(histogram["rows"], 187);
        assert_eq!(sum(histogram["bins"].as_array().unwrap(), |bin| bin["rows"].as_u64().unwrap()), 187);
    }

    let pictures = figures["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 48);
    let files: std::collections::BTreeSet<&str> = pictures.iter().map(|p| p["file"].as_str().unwrap()).collect();
    assert_eq!(files.len(), 8, "all partitions");
}

/// A browser that is installed.
fn browser() -> Option<&'static str> {
    let starts = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(starts)
}

/// Opens a page without a window; returns what the browser prints, and what the page wrote to its console.
fn open(browser: &str, page: &str, profile: &Path, arguments: &[String]) -> (String, Vec<String>) {
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(page)
        .output()
        .unwrap();
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    let console = log.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
    (text(&output.stdout), console)
}

#[test]
fn the_report_tells_what_the_sidecars_say_and_a_browser_shows_it() {
    let folder = folder();
    let workdir = folder.path().join("work");
    events(small_demo(&workdir));
    let report = workdir.join("report.html");
    let page = std::fs::read_to_string(&report).unwrap();
    check_figures(&workdir, &figures(&page));
    assert!(page.len() < 8 << 20, "{} bytes", page.len());

    let Some(browser) = browser() else {
        eprintln!("skipped: no chromium is installed, so the report was not opened in a browser (make chromium)");
        return;
    };
    let profile = folder.path().join("profile");
    let address = format!("file://{}", report.display());
    let dump = ["--dump-dom".to_owned()];

    let (dom, console) = open(browser, &format!("{address}#picture-3"), &profile, &dump);
    assert_eq!(console, Vec::<String>::new());
    assert_eq!(figures(&dom), figures(&page));
    assert!(dom.contains("<html lang=\"en\" class=\"js\">"), "the script did not run");
    assert_eq!(dom.matches("class=\"card\"").count(), 48);
    assert!(
        dom.contains("<dialog class=\"large\" open=\"\">") && dom.contains("4 of 48"),
        "the address opens a picture"
    );
    for title in ["Where the rows went", "Training loss", "Samples, 32x32", "Length of caption", "Refused by download"]
    {
        assert!(dom.contains(title), "{title}");
    }

    // A page that tries to reach out, or to run what is not its own, is stopped; the console says so, and so does this test.
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    outside.set_nonblocking(true).unwrap();
    let at = outside.local_addr().unwrap();
    let hostile = folder.path().join("hostile.html");
    let planted = format!("<img src='http://{at}/x.png'><script>document.title = 'taken'</script></main>");
    std::fs::write(&hostile, page.replacen("</main>", &planted, 1)).unwrap();
    let (dom, console) = open(browser, &format!("file://{}", hostile.display()), &profile, &dump);
    assert!(console.len() >= 2 && console.iter().all(|line| line.contains("Content Security Policy")), "{console:?}");
    assert!(!dom.contains("<title>taken"), "a planted script ran");
    assert!(outside.accept().is_err(), "the browser connected");

    let picture = folder.path().join("report.png");
    let shot = [format!("--screenshot={}", picture.display()), "--window-size=1280,2000".to_owned()];
    let (_, console) = open(browser, &address, &profile, &shot);
    assert_eq!(console, Vec::<String>::new());
    let pixels = image::open(&picture).unwrap().into_rgb8();
    assert_eq!(pixels.dimensions(), (1280, 2000));
    let colours: std::collections::BTreeSet<[u8; 3]> = pixels.pixels().map(|pixel| pixel.0).collect();
    assert!(colours.len() > 100, "the picture has only {} colours", colours.len());
}
