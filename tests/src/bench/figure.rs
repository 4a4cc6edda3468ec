//! One line of the report: a figure, what it should be, what it is.

use std::fmt::{self, Display};

/// What became of a figure.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Result {
    Met,
    Missed,
    /// There is no target: it is said for comparison.
    Stated,
    NotMeasured,
}

#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    target: String,
    measured: String,
    result: Result,
    how: String,
}

/// All figures, in order.
#[derive(Debug, Default)]
pub struct Report(Vec<Figure>);

// === impl Figure ===

impl Figure {
    /// With a target that is met or not.
    pub fn judged(name: &str, target: &str, measured: impl Into<String>, met: bool, how: impl Into<String>) -> Self {
        let result = if met { Result::Met } else { Result::Missed };
        Self { name: name.into(), target: target.into(), measured: measured.into(), result, how: how.into() }
    }

    pub fn stated(name: &str, measured: impl Into<String>, how: impl Into<String>) -> Self {
        let (name, target) = (name.into(), String::new());
        Self { name, target, measured: measured.into(), result: Result::Stated, how: how.into() }
    }

    /// Named, with the reason.
    pub fn not_measured(name: &str, target: &str, why: impl Display) -> Self {
        let (name, target) = (name.into(), target.into());
        Self { name, target, measured: "not measured".into(), result: Result::NotMeasured, how: why.to_string() }
    }
}

// === impl Report ===

impl Report {
    pub fn add(&mut self, figure: Figure) {
        self.0.push(figure);
    }

    pub fn extend(&mut self, figures: impl IntoIterator<Item = Figure>) {
        self.0.extend(figures);
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["figure", "target", "measured", "", "how"].map(String::from);
        let rows = self.0.iter().map(|figure| {
            let word = match figure.result {
                Result::Met => "met",
                Result::Missed => "MISSED",
                Result::Stated | Result::NotMeasured => "",
            };
            [figure.name.clone(), figure.target.clone(), figure.measured.clone(), word.into(), figure.how.clone()]
        });
        let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..4).map(width).collect();
        for row in &rows {
            for (cell, width) in row.iter().zip(&widths) {
                write!(out, "{cell:width$}  ")?;
            }
            writeln!(out, "{}", row[4])?;
        }
        let count = |result: Result| self.0.iter().filter(|figure| figure.result == result).count();
        let (met, missed) = (count(Result::Met), count(Result::Missed));
        writeln!(out, "\n{met} met, {missed} missed, {} not measured", count(Result::NotMeasured))
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Report};

    #[test]
    fn a_missed_target_is_marked_and_a_missing_figure_named() {
        let mut report = Report::default();
        report.add(Figure::judged("a", "at most 1", "2", false, "so"));
        report.add(Figure::not_measured("b", "", "no kernel"));
        let text = report.to_string();
        assert!(text.contains("MISSED") && text.contains("no kernel"), "{text}");
        assert!(text.ends_with("0 met, 1 missed, 1 not measured\n"), "{text}");
    }
}
