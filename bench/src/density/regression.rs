//! A straight line through points, by least squares.

/// `intercept + slope * x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub slope: f64,
    pub intercept: f64,
    /// The largest distance of a point from the line.
    pub off_by: f64,
}

impl Line {
    /// The line that is nearest to these points; none unless two of them
    /// differ in x.
    pub(super) fn through(points: &[(f64, f64)]) -> Option<Line> {
        let n = points.len() as f64;
        let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
        let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
        let spread: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
        let common: f64 = (points.iter())
            .map(|p| (p.0 - mean_x) * (p.1 - mean_y))
            .sum();
        if points.is_empty() || spread == 0.0 {
            return None;
        }
        let slope = common / spread;
        let intercept = mean_y - slope * mean_x;
        let off = points.iter().map(|p| (intercept + slope * p.0 - p.1).abs());
        Some(Line {
            slope,
            intercept,
            off_by: off.fold(0.0, f64::max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_again() {
        let points = [1.0, 2.0, 4.0, 16.0].map(|x| (x, 1024.0 + 2.5 * x));
        let line = Line::through(&points).expect("a line");
        assert!((line.slope - 2.5).abs() < 1e-9 && (line.intercept - 1024.0).abs() < 1e-9);
        assert!(line.off_by < 1e-9);
    }

    #[test]
    fn noise_is_averaged() {
        // Textbook points: y = 1 + 1 x by least squares, none of them on it.
        let points = [(0.0, 1.5), (1.0, 1.0), (2.0, 4.0), (3.0, 3.5)];
        let line = Line::through(&points).expect("a line");
        assert!((line.slope - 0.9).abs() < 1e-9, "{line:?}");
        assert!((line.intercept - 1.15).abs() < 1e-9, "{line:?}");
        assert!((line.off_by - 1.05).abs() < 1e-9, "{line:?}");
    }

    #[test]
    fn one_place_makes_no_line() {
        assert_eq!(Line::through(&[]), None);
        assert_eq!(Line::through(&[(1.0, 2.0)]), None);
        assert_eq!(Line::through(&[(1.0, 2.0), (1.0, 3.0)]), None);
    }
}
