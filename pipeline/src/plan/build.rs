//! One stage table to a stage: kind, keys, parameters, and how it fits its inputs.

use crate::manifest::{Diagnostic, Read, StageTable, nearest, with_variant};
use crate::stage::{FILES, Facts, NOT_SHARDS, PUBLISHED, Partitioning, Registry, Stage};

/// A stage without faults: its table, itself, its kind with version, and the positions of its inputs.
pub(super) type Checked<'a> = (&'a StageTable, Box<dyn Stage>, String, Vec<usize>);
pub(super) type Built = (Box<dyn Stage>, String, Vec<usize>, Facts);

pub(super) fn build(
    table: &StageTable,
    registry: &Registry,
    built: &[Checked],
    facts: &[Facts],
) -> Result<Built, Vec<Diagnostic>> {
    let (uses, place) = &table.uses;
    let Some(kind) = registry.get(uses) else {
        let fault =
            Diagnostic::new(place.clone(), format!("stage.{} uses `{uses}`, which is no stage kind", table.name));
        let known: Vec<&str> = registry.kinds().map(|k| k.name).collect();
        return Err(vec![match registry.nearest(uses) {
            Some(name) => fault.hint(format!("did you mean `{name}`?")),
            None => fault.hint(format!("known kinds: {}", known.join(", "))),
        }]);
    };
    let mut faults = Vec::new();
    let (least, most) = kind.inputs;
    if table.from.len() < least || table.from.len() > most {
        let fault = Diagnostic::new(
            table.from.first().map_or(&table.place, |from| &from.place).clone(),
            format!("stage.{} ({uses}) reads from {} stages", table.name, table.from.len()),
        );
        faults.push(fault.hint(match (least, most) {
            (0, 0) => "it reads from outside: remove `from`".to_owned(),
            (1, 1) => "write from = \"STAGE\"".to_owned(),
            (least, most) if least == most => format!("it needs {least}: write from = [\"STAGE\", …]"),
            _ => format!("it needs {least} to {most}: write from = [\"STAGE\", …]"),
        }));
    }
    let (_, common) = crate::manifest::schemas();
    faults.extend(table.parameters.unknown(&(kind.schemas)(), &crate::manifest::property_names(&common)));
    let stage = match (kind.build)(&table.parameters) {
        Ok(stage) => stage,
        Err(fault) => {
            faults.push(fault);
            return Err(faults);
        }
    };
    // Of kinds that read either from a stage or from outside.
    match (stage.partitioning() == Partitioning::Source, table.from.first()) {
        (true, Some(from)) if least == 0 && most > 0 => {
            let message = format!("stage.{} ({uses}) reads from {from}, and from outside as well", table.name);
            faults.push(Diagnostic::new(from.place.clone(), message).hint("keep one of them"));
        }
        (false, None) if least == 0 => {
            let message = format!("nothing says what stage.{} ({uses}) reads", table.name);
            let hint = "write from = \"STAGE\", or the key that names files from outside";
            faults.push(Diagnostic::new(table.place.clone(), message).hint(hint));
        }
        _ => {}
    }
    // A stage whose input could not be built is not checked further: the input's own faults come first.
    let mut inputs = Vec::new();
    let mut upstream: Option<Facts> = None;
    for (n, from) in table.from.iter().enumerate() {
        if table.from.iter().take(n).any(|before| before.to_string() == from.to_string()) {
            let message = format!("stage.{} reads from {from} twice", table.name);
            faults.push(Diagnostic::new(from.place.clone(), message).hint("name each stage once"));
        }
        let Some(position) = built.iter().position(|(other, ..)| other.name == from.stage) else { continue };
        inputs.push(position);
        let mut known = facts.get(position).cloned().unwrap_or_default();
        if let Some((_, input, ..)) = built.get(position) {
            match chosen(table, from, input.as_ref()) {
                Ok(of_variant) => known.extend(of_variant),
                Err(fault) => faults.push(fault),
            }
        }
        // What it reads, it turns into something else.
        let form = known.remove(NOT_SHARDS);
        if let Some(format) = form.as_ref().and_then(|form| form.as_str())
            && !stage.reads(format)
        {
            let message = format!("stage.{} cannot read from {from}, whose output is {format}", table.name);
            let hint = match format {
                PUBLISHED => "read from the stage that it publishes",
                FILES => "tars become samples by `uses = \"extract\"`, tables by `uses = \"import\"`",
                _ => "write output = \"parquet\" there, or make samples of its tars by `uses = \"extract\"`",
            };
            faults.push(Diagnostic::new(from.place.clone(), message).hint(hint));
        }
        upstream = Some(match (upstream, stage.partitioning()) {
            (None, _) => known,
            // Of rows from several stages is known what holds for all of them.
            (Some(mut before), Partitioning::EachInput | Partitioning::Surveyed) => {
                before.retain(|fact, value| known.get(fact) == Some(value));
                before
            }
            // The first is what the stage works on; of the others it learns what that does not say.
            (Some(first), _) => known.into_iter().chain(first).collect(),
        });
    }
    let mut upstream = upstream.unwrap_or_default();
    faults.extend(stage.check(&upstream).into_iter().map(|(key, message)| table.parameters.fault(key, message)));
    upstream.extend(stage.facts());
    if faults.is_empty() { Ok((stage, kind.versioned_name(), inputs, upstream)) } else { Err(faults) }
}

/// What is known about the variant of `input` that `from` names.
fn chosen(table: &StageTable, from: &Read, input: &dyn Stage) -> Result<Facts, Diagnostic> {
    let mut variants = input.variants();
    let (reader, stage) = (&table.name, &from.stage);
    let known = || variants.iter().map(|(name, _)| with_variant(stage, Some(name)));
    let fault = |message: String| Diagnostic::new(from.place.clone(), message);
    match &from.variant {
        None if variants.is_empty() => Ok(Facts::new()),
        None => {
            let message = format!(
                "stage.{reader} reads from {stage}, each partition of which comes in {} variants",
                variants.len()
            );
            Err(fault(message).hint(format!("choose one of {}", known().collect::<Vec<_>>().join(", "))))
        }
        Some(_) if variants.is_empty() => {
            Err(fault(format!("stage.{reader} reads from {from}, but {stage} has no variants"))
                .hint(format!("write {stage}")))
        }
        Some(name) => match variants.iter().position(|(known, _)| known == name) {
            Some(at) => Ok(variants.swap_remove(at).1),
            None => Err(fault(format!("stage.{reader} reads from {from}, which is no variant of {stage}")).hint(
                match nearest(name, variants.iter().map(|(known, _)| known.as_str())) {
                    Some(near) => format!("did you mean {}?", with_variant(stage, Some(near))),
                    None => format!("its variants: {}", known().collect::<Vec<_>>().join(", ")),
                },
            )),
        },
    }
}
