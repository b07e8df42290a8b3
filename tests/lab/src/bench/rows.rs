//! What a measurement prints: rows of values, each the median of its samples, beside a peer's and a goal.

use serde::Serialize;

/// One measured value beside its goal.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    work: String,
    metric: &'static str,
    unit: &'static str,
    ferry: f64,
    peer: Option<String>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    goal: Option<f64>,
    /// Whether the goal is the least that it shall be; otherwise it is the most.
    at_least: bool,
    met: Option<bool>,
}

impl Row {
    /// The median of the samples.
    pub fn of(work: String, metric: &'static str, unit: &'static str, samples: &[f64]) -> Self {
        Self {
            work,
            metric,
            unit,
            ferry: median(samples),
            peer: None,
            peer_value: None,
            ratio: None,
            goal: None,
            at_least: false,
            met: None,
        }
    }

    /// It shall be no more than this.
    pub fn at_most(self, goal: f64) -> Self {
        Self { goal: Some(goal), met: Some(self.ferry <= goal), ..self }
    }

    /// Beside what a peer needs for the same; the ratio to it shall be no more than `goal`.
    pub fn beside(self, peer: &str, samples: &[f64], goal: Option<f64>) -> Self {
        let row = self.compared(peer, samples);
        Self { goal, met: goal.zip(row.ratio).map(|(goal, ratio)| ratio <= goal), ..row }
    }

    /// Beside what is without Ferry's work; the ratio to it shall be no less than `goal`.
    pub fn no_less_than(self, peer: &str, samples: &[f64], goal: f64) -> Self {
        let row = self.compared(peer, samples);
        let met = row.ratio.map(|ratio| ratio >= goal);
        Self { goal: Some(goal), at_least: true, met, ..row }
    }

    fn compared(self, peer: &str, samples: &[f64]) -> Self {
        let value = median(samples);
        let ratio = self.ferry / value;
        Self { peer: Some(peer.to_owned()), peer_value: Some(value), ratio: Some(ratio), ..self }
    }
}

/// For people.
pub fn print(rows: &[Row]) {
    println!(
        "{:34} {:14} {:>10}  {:12} {:16} {:>10} {:>7} {:>6}",
        "work", "metric", "ferry", "unit", "peer", "its value", "ratio", "goal"
    );
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    for row in rows {
        let met = match row.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        println!(
            "{:34} {:14} {:>10.3}  {:12} {:16} {:>10} {:>7} {:>6} {met}",
            row.work,
            row.metric,
            row.ferry,
            row.unit,
            row.peer.as_deref().unwrap_or("-"),
            number(row.peer_value),
            number(row.ratio),
            row.goal.map_or_else(
                || "-".to_owned(),
                |goal| if row.at_least { format!(">={goal}") } else { goal.to_string() }
            ),
        );
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_held_against_its_goal() {
        let row = Row::of("copy".to_owned(), "wall", "s", &[4.0, 1.0, 2.0]);
        let near = row.clone().beside("rsync", &[4.0, 5.0, 3.0], Some(0.5));
        assert_eq!((near.ferry, near.peer_value, near.ratio), (2.0, Some(4.0), Some(0.5)));
        assert_eq!(near.met, Some(true));
        assert_eq!(row.clone().beside("rsync", &[4.0], Some(0.4)).met, Some(false));
        assert_eq!(row.clone().beside("tar", &[4.0], None).met, None);
        assert_eq!(row.clone().at_most(1.9).met, Some(false));
        assert_eq!(row.clone().no_less_than("alone", &[2.1], 0.9).met, Some(true));
        assert_eq!(row.no_less_than("alone", &[3.0], 0.9).met, Some(false));
    }
}
