// SPDX-License-Identifier: MIT
// Prints "PASSED FAILED" from vitest's JSON report. Plain JavaScript: it runs when the build broke.
'use strict';
const { readFileSync } = require('node:fs');

/** A test that did not run proves nothing, so whatever has not passed has failed. */
function count(report) {
  let passed = 0;
  let failed = 0;
  for (const file of report.testResults) {
    let failedHere = 0;
    for (const { status, fullName } of file.assertionResults) {
      if (status === 'passed') passed++;
      else failedHere++;
      if (status !== 'passed' && status !== 'failed') console.error(`${status}: ${fullName}`);
    }
    // A file that could not be loaded, or whose hooks failed, has no failed test of its own.
    failed += failedHere > 0 || file.status === 'passed' ? failedHere : 1;
  }
  // An error outside of any test, such as an unhandled rejection.
  if (!report.success && failed === 0) failed = 1;
  if (passed === 0 && failed === 0) failed = 1;
  return { passed, failed };
}

let result = { passed: 0, failed: 1 };
try {
  result = count(JSON.parse(readFileSync(process.argv[2], 'utf8')));
} catch (error) {
  console.error(`no test report: ${error.message}`);
}
console.log(`${result.passed} ${result.failed}`);
