;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; Builds the packages of shell.scm, and prints "label store-path" lines:
;;   guix repl -- shell-seed.scm MANIFEST GUILE
;;
;; The bootstrap Guile would have to be downloaded.  In its place goes the program GUILE of this
;; machine: builders aren't isolated here, so it finds all that it needs outside the store.

(use-modules (guix build store-copy) (guix derivations) (guix packages) (guix profiles)
             (guix store) (guix store database) (gnu packages bootstrap) (ice-9 match))

(define (add-guile store guile)
  (let* ((drv (package-derivation store %bootstrap-guile))
         (out (derivation->output-path drv))
         (program (string-append out "/bin/guile")))
    (unless (valid-path? store out)
      (mkdir out)
      (mkdir (string-append out "/bin"))
      (copy-file guile program)
      (for-each (lambda (file)
                  (chmod file #o555)
                  (utime file 1 1 0 0))
                (list program (dirname program) out))
      (with-database "/var/guix/db/db.sqlite" db
        (register-items db (list (store-info out #f '())))))
    (format #t "e2e-guile ~a~%" out)))

(match (command-line)
  ((_ manifest guile)
   (with-store store
     (add-guile store guile)
     (let* ((packages (map manifest-entry-item (manifest-entries (load manifest))))
            (derivations (map (lambda (package) (package-derivation store package)) packages)))
       (build-derivations store derivations)
       (for-each (lambda (package drv)
                   (format #t "~a ~a~%" (package-name package) (derivation->output-path drv)))
                 packages derivations)))))
