//! All numbers about a set of pictures, together.

use serde::{Deserialize, Serialize};

use crate::{
    BootstrapReference, BootstrapSettings, EvaluationError, FeatureStatistics, FeatureStore, FrechetReference,
    KernelSubsets, Metric, SampleCounts, bootstrap_frechet_distance, bootstrap_kernel_distance, check_samples,
    kernel_distance_of_subsets, precision_and_recall,
};

const CLIP_SCORE: &str = "CLIP score";

/// What to do about pictures that have none.
const CAPTIONS: &str = "each needs one, in a .txt of its name or in its PNG. What was seen is kept: once they have one, choose another \
                        folder";

/// How numbers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportSettings {
    pub subsets: KernelSubsets,
    pub neighbours: usize,
    /// For the Fréchet distance's interval and the kernel distance's error; no resamples for neither.
    pub bootstrap: BootstrapSettings,
}

impl Default for ReportSettings {
    fn default() -> Self {
        let bootstrap = BootstrapSettings { resamples: 40, ..BootstrapSettings::default() };
        Self { subsets: KernelSubsets::default(), neighbours: crate::DEFAULT_NEIGHBOURS, bootstrap }
    }
}

/// What pictures are compared with.
#[derive(Debug)]
pub enum Reference {
    /// Features of each real picture.
    Features(FeatureStore),
    /// Their mean and covariance alone, of an unknown number of pictures.
    Moments { of: FrechetReference, name: String },
}

impl std::fmt::Debug for FrechetReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrechetReference").field("dimensions", &self.dimensions()).finish_non_exhaustive()
    }
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub metric: String,
    pub value: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub standard_error: Option<f64>,
    /// Where other samples of the same distribution would lie, with the bootstrap's confidence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval: Option<[f64; 2]>,
    /// What it is, in words.
    pub about: String,
}

/// A number that there is none of, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    pub metric: String,
    pub reason: String,
}

/// What can be said of a set of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whose features were compared.
    pub network: String,
    pub network_digest: String,
    pub generated: u64,
    /// None for moments of an unknown number.
    pub reference: Option<u64>,
    pub settings: ReportSettings,
    pub metrics: Vec<Measured>,
    pub refused: Vec<Refused>,
}

impl Report {
    /// All numbers that there are samples enough for, and captions. What there are too few for is named; anything else that goes wrong
    /// is an error, and so is a reference of another network.
    pub fn of(
        generated: &FeatureStore,
        reference: Option<&Reference>,
        settings: &ReportSettings,
    ) -> Result<Self, EvaluationError> {
        let network = generated.network();
        let mut report = Self {
            network: network.network.clone(),
            network_digest: network.digest.clone(),
            generated: generated.count(),
            reference: None,
            settings: *settings,
            metrics: Vec::new(),
            refused: Vec::new(),
        };
        // Only numbers of that network may have those names.
        let [frechet, kernel] = if network.is_inception {
            ["FID".to_owned(), "KID".to_owned()]
        } else {
            ["Fréchet distance", "kernel distance"].map(|distance| format!("{distance} ({})", network.network))
        };
        match reference {
            None => {}
            Some(Reference::Moments { of, name }) => {
                let value = of_moments(generated, of, name);
                report.take(&frechet, value)?;
                let reason = format!("{name} holds a mean and a covariance alone; features of each picture are needed");
                for metric in [kernel.as_str(), "precision", "recall"] {
                    report.refused.push(Refused { metric: metric.to_owned(), reason: reason.clone() });
                }
            }
            Some(Reference::Features(real)) => {
                real.check_network(network)?;
                report.reference = Some(real.count());
                report.take(&frechet, frechet_of(generated, real, settings))?;
                report.take(&kernel, kernel_of(generated, real, settings))?;
                report.take_all(&["precision", "recall"], neighbours_of(generated, real, settings))?;
            }
        }
        if !generated.scores().is_empty() {
            report.metrics.push(clip_score(generated.scores(), generated.count()));
        } else if generated.is_scored() {
            let reason = format!("none of the {} pictures has a caption: {CAPTIONS}", generated.count());
            report.refused.push(Refused { metric: CLIP_SCORE.to_owned(), reason });
        }
        Ok(report)
    }

    fn take(&mut self, metric: &str, value: Result<Measured, EvaluationError>) -> Result<(), EvaluationError> {
        let named = value.map(|value| vec![Measured { metric: metric.to_owned(), ..value }]);
        self.take_all(&[metric], named)
    }

    fn take_all(
        &mut self,
        metrics: &[&str],
        values: Result<Vec<Measured>, EvaluationError>,
    ) -> Result<(), EvaluationError> {
        match values {
            Ok(values) => self.metrics.extend(values),
            Err(error @ EvaluationError::TooFewSamples { .. }) => self.refused.extend(
                metrics.iter().map(|metric| Refused { metric: (*metric).to_owned(), reason: error.to_string() }),
            ),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn of_moments(generated: &FeatureStore, of: &FrechetReference, name: &str) -> Result<Measured, EvaluationError> {
    let (count, dimensions) = (generated.count(), of.dimensions());
    // How many there were is not known; those who publish such files took enough.
    let counts = SampleCounts { generated: count, reference: u64::MAX, dimensions };
    if check_samples(Metric::FrechetDistance, counts).is_err() {
        let reason = format!(
            "features of {dimensions} dimensions need more than {dimensions} samples, there are {count}. With fewer the covariance \
             is singular and the distance comes out too large; 10,000 or more are usual"
        );
        return Err(EvaluationError::TooFewSamples { metric: "Fréchet distance", reason });
    }
    let value = of.distance(&FeatureStatistics::of(generated.features()?))?;
    let about = format!("to the mean and covariance in {name}");
    Ok(Measured { metric: String::new(), value, standard_error: None, interval: None, about })
}

fn frechet_of(
    generated: &FeatureStore,
    real: &FeatureStore,
    settings: &ReportSettings,
) -> Result<Measured, EvaluationError> {
    let generated = generated.features()?;
    check_samples(Metric::FrechetDistance, SampleCounts::of(generated, real.features()?))?;
    let statistics = real.statistics()?;
    let about = "lower is better; depends on the number of samples: compare equal numbers only".to_owned();
    if settings.bootstrap.resamples == 0 {
        let value = FrechetReference::new(&statistics)?.distance(&FeatureStatistics::of(generated))?;
        return Ok(Measured { metric: String::new(), value, standard_error: None, interval: None, about });
    }
    let found = bootstrap_frechet_distance(generated, BootstrapReference::Fixed(&statistics), &settings.bootstrap)?;
    // Resamples have fewer different samples, which biases them upwards: their interval is moved back.
    let (lower, upper) = found.centred();
    let (standard_error, interval) = (Some(found.standard_error), Some([lower, upper]));
    Ok(Measured { metric: String::new(), value: found.value, standard_error, interval, about })
}

fn kernel_of(
    generated: &FeatureStore,
    real: &FeatureStore,
    settings: &ReportSettings,
) -> Result<Measured, EvaluationError> {
    let (generated, real) = (generated.features()?, real.features()?);
    let found = kernel_distance_of_subsets(generated, real, &settings.subsets)?;
    let KernelSubsets { size, count, .. } = settings.subsets;
    let about = format!(
        "lower is better, 0 is alike; the mean of {count} subsets of {size}, which scatter by {:.3e} about it",
        found.standard_deviation
    );
    // Subsets share samples, and are all the same where one is everything: how they scatter says little about other samples.
    let of_all = match settings.bootstrap.resamples {
        0 => None,
        _ => match bootstrap_kernel_distance(generated, real, &settings.bootstrap) {
            Ok(of_all) => Some(of_all.standard_error),
            Err(EvaluationError::TooFewSamples { .. }) => None,
            Err(error) => return Err(error),
        },
    };
    // And what it adds that so many subsets stand for all of them.
    let standard_error = of_all.map(|of_all| of_all.hypot(found.standard_deviation / (count as f64).sqrt()));
    Ok(Measured { metric: String::new(), value: found.mean, standard_error, interval: None, about })
}

fn neighbours_of(
    generated: &FeatureStore,
    real: &FeatureStore,
    settings: &ReportSettings,
) -> Result<Vec<Measured>, EvaluationError> {
    let found = precision_and_recall(generated.features()?, real.features()?, settings.neighbours)?;
    let measured = |metric: &str, value, about: &str| Measured {
        metric: metric.to_owned(),
        value,
        standard_error: None,
        interval: None,
        about: format!("{about}; balls to the {}. neighbour", settings.neighbours),
    };
    Ok(vec![
        measured("precision", found.precision, "share of the pictures that look real"),
        measured("recall", found.recall, "share of the real variety that is there"),
    ])
}

/// Of `pictures`, those that have a caption.
fn clip_score(scores: &[f64], pictures: u64) -> Measured {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let mut about = "of pictures and their prompts, up to 100; higher is better".to_owned();
    if (scores.len() as u64) < pictures {
        about = format!("{about}. {} of {pictures} pictures have a caption: {CAPTIONS}", scores.len());
    }
    Measured {
        metric: CLIP_SCORE.to_owned(),
        value: mean,
        standard_error: Some((variance / count).sqrt()),
        interval: None,
        about,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{NetworkName, Seen};

    #[test]
    fn pictures_without_a_caption_are_told_where_scores_were_wanted() {
        let network =
            NetworkName { network: "n".to_owned(), digest: String::new(), dimensions: 1, is_inception: false };
        let of = |source: Value, batches: &[&[f64]]| {
            let folder = tempfile::tempdir().unwrap();
            let mut store = FeatureStore::open(&folder.path().join("features"), &network, source).unwrap();
            for scores in batches {
                store.append(&Seen { features: vec![1.0, 2.0], scores: scores.to_vec() }).unwrap();
            }
            let kept = FeatureStore::read(&folder.path().join("features")).unwrap();
            assert_eq!((kept.count(), kept.scores()), (store.count(), store.scores()));
            Report::of(&kept, None, &ReportSettings::default()).unwrap()
        };
        let wanted = json!({ "scored_by": "a digest" });
        let none = of(wanted.clone(), &[&[], &[]]);
        assert_eq!((none.metrics.len(), none.refused[0].metric.as_str()), (0, "CLIP score"));
        assert!(none.refused[0].reason.starts_with("none of the 4 pictures has a caption: "), "{none:?}");
        let some = of(wanted.clone(), &[&[20.0], &[], &[22.0, 30.0]]);
        assert_eq!((some.metrics[0].value, some.refused.len()), (24.0, 0));
        assert!(some.metrics[0].about.contains("3 of 6 pictures have a caption: "), "{some:?}");
        let whole = of(wanted, &[&[20.0, 30.0]]);
        assert_eq!((whole.metrics[0].value, whole.refused.len()), (25.0, 0));
        assert!(!whole.metrics[0].about.contains("caption"), "{whole:?}");
        let unwanted = of(json!({}), &[&[]]);
        assert!(unwanted.metrics.is_empty() && unwanted.refused.is_empty(), "{unwanted:?}");
    }
}
