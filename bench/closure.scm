;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; Adds the files of a directory to the store, each as an item, and one item that refers to all:
;;   guix repl -- closure.scm NAME DIRECTORY BUSYBOX
;; Prints the store path of that one.

(use-modules (guix derivations) (guix store) (ice-9 ftw) (ice-9 match))

(define (closure store name directory busybox)
  (let* ((files (scandir directory (lambda (file) (not (string-prefix? "." file)))))
         (items (map (lambda (file)
                       (add-to-store store file #t "sha256" (string-append directory "/" file)))
                     files))
         (program (string-append busybox "/bin/busybox"))
         (script (string-append
                  program " mkdir $out; "
                  (string-join (map (lambda (item)
                                      (string-append program " ln -s " item " $out/;"))
                                    items))))
         (drv (derivation store name program (list "sh" "-euc" script)
                          #:sources (cons busybox items))))
    (build-derivations store (list drv))
    (display (derivation->output-path drv))))

(match (command-line)
  ((_ name directory busybox)
   (with-store store
     (closure store name directory busybox))))
