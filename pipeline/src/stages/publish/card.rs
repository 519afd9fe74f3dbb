//! The card of a publication: what it is, what is in it, and how it was made. The same input gives the same card.

use std::fmt::Write as _;

use shards::columns;

use super::dataset_card::quoted;
use super::files::Configuration;
use super::provenance::Step;
use super::{Publish, Semantics, Target, dataset_card};

/// Rows of the table of buckets, at most.
const BUCKETS: usize = 50;

/// The text of README.md.
pub(super) fn write(stage: &Publish, configurations: &[Configuration], steps: &[Step]) -> String {
    let mut text = format!("---\n{}", head(&stage.semantics, stage.title(), configurations));
    text += "---\n\n";
    let _ = writeln!(text, "# {}\n", stage.title());
    let description = stage.semantics.description.trim();
    if !description.is_empty() {
        let _ = writeln!(text, "{description}\n");
    }
    text += &contents(configurations);
    text += &usage(stage, configurations);
    if !stage.semantics.sources.is_empty() {
        text += "## Sources\n\n";
        for source in &stage.semantics.sources {
            let _ = writeln!(text, "- {}", on_one_line(source));
        }
        text += "\n";
    }
    for configuration in configurations {
        text += &buckets(configuration, configurations.len() > 1);
    }
    text += &provenance(steps);
    let _ = writeln!(text, "Made by ferrotype {}.", env!("CARGO_PKG_VERSION"));
    text
}

/// What the Hub and `datasets` read.
fn head(semantics: &Semantics, title: &str, configurations: &[Configuration]) -> String {
    let Semantics { license, license_name, license_link, tags, task_categories, .. } = semantics;
    let mut text = String::new();
    for (key, value) in [("license", license), ("license_name", license_name), ("license_link", license_link)] {
        if let Some(value) = value {
            let _ = writeln!(text, "{key}: {}", quoted(value));
        }
    }
    let _ = writeln!(text, "pretty_name: {}", quoted(title));
    let mut list = |key: &str, values: &[&str]| {
        if !values.is_empty() {
            let _ = writeln!(text, "{key}:");
            for value in values {
                let _ = writeln!(text, "- {}", quoted(value));
            }
        }
    };
    list("task_categories", &task_categories.iter().map(String::as_str).collect::<Vec<_>>());
    let own = Some("ferrotype").filter(|own| !tags.iter().any(|tag| tag == own));
    list("tags", &tags.iter().map(String::as_str).chain(own).collect::<Vec<_>>());
    let rows = configurations.iter().map(|configuration| configuration.size.rows).sum();
    list("size_categories", &[size_category(rows)]);
    let known = configurations.iter().map(|configuration| dataset_card::Configuration {
        name: &configuration.name,
        files: &configuration.pattern,
        schema: &configuration.schema,
        size: Some(configuration.size),
    });
    text + &dataset_card::head(&known.collect::<Vec<_>>())
}

/// As the Hub puts sizes into classes.
fn size_category(rows: u64) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        10_000_000..100_000_000 => "10M<n<100M",
        100_000_000..1_000_000_000 => "100M<n<1B",
        1_000_000_000..10_000_000_000 => "1B<n<10B",
        10_000_000_000..100_000_000_000 => "10B<n<100B",
        100_000_000_000..1_000_000_000_000 => "100B<n<1T",
        _ => "n>1T",
    }
}

fn contents(configurations: &[Configuration]) -> String {
    let mut text =
        "## Contents\n\n| configuration | rows | images | files | size |\n|---|--:|--:|--:|--:|\n".to_owned();
    for Configuration { name, files, schema, size, .. } in configurations {
        let images = if schema.index_of(columns::IMAGE).is_ok() { size.rows } else { 0 };
        let _ = writeln!(
            text,
            "| {} | {} | {images} | {} | {} |",
            cell(name),
            size.rows,
            files.len(),
            size_in_words(size.file_bytes)
        );
    }
    text += "\n| column | type | |\n|---|---|---|\n";
    if let Some(first) = configurations.first() {
        for field in first.schema.fields() {
            let kind = columns::feature_name(field).map_or_else(|| field.data_type().to_string(), str::to_owned);
            let _ = writeln!(text, "| `{}` | {} | {} |", cell(field.name()), cell(&kind), meaning(field.name()));
        }
    }
    text + "\n"
}

/// What the columns that we make hold.
fn meaning(column: &str) -> &'static str {
    match column {
        columns::KEY => "names the sample",
        columns::IMAGE => "the picture",
        columns::CAPTION => "the text that came with it",
        columns::RECAPTION => "a description by a vision model",
        columns::RECAPTION_SHORT => "the same in few words",
        columns::URL => "where the picture was",
        columns::WIDTH | columns::HEIGHT => "in pixels",
        columns::SHA256 => "of the picture's bytes as they came",
        columns::ORIGINAL_WIDTH | columns::ORIGINAL_HEIGHT => "in pixels, before resizing",
        columns::PHASH => "perceptual hash",
        columns::EXIF => "the picture's EXIF tags, as JSON",
        columns::BUCKET_SIZE => "width x height; a row group never holds two",
        columns::CHECKSUM => "CRC-32 of key, image and texts",
        _ => "",
    }
}

fn usage(stage: &Publish, configurations: &[Configuration]) -> String {
    let (place, revision) = match &stage.target {
        Target::Hub(repository) if repository.revision == "main" => (repository.name.clone(), String::new()),
        Target::Hub(repository) => (repository.name.clone(), format!(" revision={},", quoted(&repository.revision))),
        Target::Store { .. } => ("A COPY OF THIS FOLDER".to_owned(), String::new()),
    };
    let chosen = match configurations {
        [.., last] if configurations.len() > 1 => format!(" {},", quoted(&last.name)),
        _ => String::new(),
    };
    let place = quoted(&place);
    format!(
        "```python\nimport datasets\n\ndataset = datasets.load_dataset({place},{chosen}{revision} split=\"train\")\n```\n\n"
    )
}

fn buckets(configuration: &Configuration, is_one_of_several: bool) -> String {
    if configuration.buckets.is_empty() {
        return String::new();
    }
    let mut counts: Vec<(&String, &u64)> = configuration.buckets.iter().collect();
    counts.sort_by_key(|(size, rows)| (std::cmp::Reverse(**rows), (*size).clone()));
    let of = if is_one_of_several { format!(" of {}", configuration.name) } else { String::new() };
    let mut text = format!("## Buckets{of}\n\n| width x height | images | share |\n|---|--:|--:|\n");
    for (size, rows) in counts.iter().take(BUCKETS) {
        let share = 100.0 * **rows as f64 / configuration.size.rows.max(1) as f64;
        let _ = writeln!(text, "| {} | {rows} | {share:.1} % |", cell(size));
    }
    if let Some(rest) = counts.get(BUCKETS..).filter(|rest| !rest.is_empty()) {
        let rows: u64 = rest.iter().map(|(_, rows)| **rows).sum();
        let _ = writeln!(text, "| {} more | {rows} | |", rest.len());
    }
    text + "\n"
}

fn provenance(steps: &[Step]) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let mut text =
        "## How it was made\n\n| stage | kind | rows in | rows out | dropped |\n|---|---|--:|--:|---|\n".to_owned();
    for Step { stage, kind, rows_in, rows_out, dropped, rescued, .. } in steps {
        let mut reasons: Vec<String> = dropped.iter().map(|(reason, rows)| format!("{reason}: {rows}")).collect();
        if *rescued > 0 {
            reasons.push(format!("({rescued} of them came on a later try)"));
        }
        let reasons = cell(&reasons.join(", "));
        let _ = writeln!(text, "| {} | {} | {rows_in} | {rows_out} | {reasons} |", cell(stage), cell(kind));
    }
    text += "\n<details><summary>Parameters</summary>\n\n```json\n";
    let parameters = steps.iter().map(|step| (step.stage.clone(), step.parameters.clone()));
    let parameters = serde_json::Value::Object(parameters.collect());
    text += &serde_json::to_string_pretty(&parameters).unwrap_or_default();
    text + "\n```\n\n</details>\n\n"
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    on_one_line(text).replace('|', "\\|")
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `12.3 MB`
pub(super) fn size_in_words(bytes: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let unit = units.into_iter().find(|(_, size)| bytes as f64 >= *size);
    unit.map_or_else(|| format!("{bytes} bytes"), |(unit, size)| format!("{:.1} {unit}", bytes as f64 / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_words_of_the_hub_and_of_people() {
        let categories =
            [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (12_000_000, "10M<n<100M"), (u64::MAX, "n>1T")];
        for (rows, expected) in categories {
            assert_eq!(size_category(rows), expected);
        }
        let sizes = [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1500, "1.5 kB"),
            (12_340_000, "12.3 MB"),
            (5_000_000_000_000, "5.0 TB"),
        ];
        for (bytes, expected) in sizes {
            assert_eq!(size_in_words(bytes), expected);
        }
    }

    #[test]
    fn a_cell_of_a_table_stays_one() {
        assert_eq!(cell("a | b\n c"), "a \\| b c");
    }
}
